"""What make's output says. The logs are from real builds of 6.12 (make 4.3, clang 19), names shortened."""

from __future__ import annotations

import pytest

from klto.kernel.kbuild import MakeStep, find_failures, parse_step

COMPILE_ERROR = """\
make: Entering directory '/src/linux'
  CC      kernel/sched/core.o
  CC      init/main.o
  CC      kernel/fork.o
../init/main.c:12:1: error: unknown type name 'foo'
   12 | foo bar;
      | ^
  AR      kernel/sched/built-in.a
1 error generated.
make[4]: *** [../scripts/Makefile.build:229: init/main.o] Error 1
make[4]: *** Waiting for unfinished jobs....
make[3]: *** [../scripts/Makefile.build:478: init] Error 2
make[2]: *** [/src/linux/Makefile:1946: .] Error 2
make[1]: *** [/src/linux/Makefile:236: __sub-make] Error 2
make: *** [Makefile:236: __sub-make] Error 2
make: Leaving directory '/src/linux'
""".splitlines()

LINK_ERROR = """\
  LD      vmlinux.o
  MODPOST Module.symvers
ERROR: modpost: "foo" [fs/ext4/ext4.ko] undefined!
  UPD     include/generated/utsversion.h
  LD      .tmp_vmlinux1
ld.lld: error: undefined symbol: bar
>>> referenced by main.c
>>>               vmlinux.o:(start_kernel)
make[2]: *** [../scripts/Makefile.vmlinux:34: vmlinux] Error 1
make[1]: *** [/src/linux/Makefile:1164: vmlinux] Error 2
make: *** [Makefile:236: __sub-make] Error 2
""".splitlines()

KILLED = """\
  LD      vmlinux.o
make[2]: *** [../scripts/Makefile.vmlinux_o:68: vmlinux.o] Killed
make[2]: *** Deleting file 'vmlinux.o'
make[1]: *** [/src/linux/Makefile:1152: vmlinux_o] Error 2
make: *** [Makefile:236: __sub-make] Error 2
""".splitlines()

TWO = """\
  CC      a/one.o
  CC      b/two.o
one.c:1:1: error: first
make[3]: *** [scripts/Makefile.build:229: a/one.o] Error 1
make[3]: *** Waiting for unfinished jobs....
two.c:1:1: error: second
make[3]: *** [scripts/Makefile.build:229: b/two.o] Error 1
make[2]: *** [scripts/Makefile.build:478: a] Error 2
make[2]: *** [scripts/Makefile.build:478: b] Error 2
""".splitlines()


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("  CC      init/main.o", MakeStep("CC", "init/main.o")),
        ("  CC [M]  lib/libcrc32c.o", MakeStep("CC", "lib/libcrc32c.o")),
        ("  LD [M]  fs/ext4/ext4.ko", MakeStep("LD", "fs/ext4/ext4.ko")),
        (
            "  VDSO2C  arch/x86/entry/vdso/vdso-image-64.c",
            MakeStep("VDSO2C", "arch/x86/entry/vdso/vdso-image-64.c"),
        ),
        (
            "  HYPCOPY arch/arm64/kvm/hyp/nvhe/kvm_nvhe.o",
            MakeStep("HYPCOPY", "arch/arm64/kvm/hyp/nvhe/kvm_nvhe.o"),
        ),
        ("   12 | foo bar;", None),
        ("Kernel: arch/x86/boot/bzImage is ready  (#1)", None),
        ("", None),
    ],
)
def test_parse_step(line: str, step: MakeStep | None) -> None:
    assert parse_step(line) == step


def test_objects_are_told_from_other_steps() -> None:
    assert MakeStep("CC", "init/main.o").is_object
    assert MakeStep("AS", "entry.o").is_object
    assert not MakeStep("CC", "kernel/bounds.s").is_object
    assert not MakeStep("LD", "vmlinux.o").is_object


def test_the_innermost_failure_counts_and_has_its_own_lines() -> None:
    (failure,) = find_failures(COMPILE_ERROR)
    assert (failure.target, failure.status) == ("init/main.o", 1)
    assert failure.lines == (
        "../init/main.c:12:1: error: unknown type name 'foo'",
        "   12 | foo bar;",
        "      | ^",
        "1 error generated.",
    )


def test_failure_of_a_target_that_a_sub_make_shares_its_name_with() -> None:
    (failure,) = find_failures(LINK_ERROR)
    assert (failure.target, failure.reason) == ("vmlinux", "Error 1")
    assert "ld.lld: error: undefined symbol: bar" in failure.lines


def test_a_signal_has_no_status() -> None:
    (failure,) = find_failures(KILLED)
    assert (failure.target, failure.reason, failure.status) == ("vmlinux.o", "Killed", None)


def test_failures_of_several_jobs() -> None:
    one, two = find_failures(TWO)
    assert (one.target, one.lines) == ("a/one.o", ("one.c:1:1: error: first",))
    assert (two.target, two.lines) == ("b/two.o", ("two.c:1:1: error: second",))


def test_a_failure_without_a_target() -> None:
    (failure,) = find_failures(["Makefile:204: *** source directory cannot contain spaces.  Stop."])
    assert failure.reason == "source directory cannot contain spaces"


#: make O=... arch/x86/purgatory/purgatory.ro
NO_RULE = """\
make[1]: Entering directory '/tmp/out'
  GEN     Makefile
  CALL    /src/linux/scripts/checksyscalls.sh
make[2]: *** No rule to make target 'arch/x86/purgatory/purgatory.ro'.  Stop.
make[1]: *** [/src/linux/Makefile:236: __sub-make] Error 2
make[1]: Leaving directory '/tmp/out'
make: *** [Makefile:236: __sub-make] Error 2
""".splitlines()


def test_what_make_cannot_do_itself_comes_before_what_follows_from_it() -> None:
    (failure,) = find_failures(NO_RULE)
    assert (failure.target, failure.status) == ("make", None)
    assert failure.reason == "No rule to make target 'arch/x86/purgatory/purgatory.ro'"
    # scripts/Makefile.build says it without a depth.
    (failure,) = find_failures(
        ["scripts/Makefile.build:41: /x/Makefile: No such file or directory", *NO_RULE[3:]]
    )
    assert failure.reason.startswith("No rule")
    (failure,) = find_failures(["/my tree/Makefile:3: *** no compiler.  Stop.", *NO_RULE[4:]])
    assert failure.reason == "no compiler"
    assert find_failures(["  CC      a.o", "fs/a.c:12: *** starred"]) == []


def test_a_recipe_that_fails_with_status_2_beside_make_s_own_failure() -> None:
    """Two jobs of make -j2 (GNU make 4.3): a sub-make's Makefile, and a script that ended with 2."""
    first, second = find_failures([
        "Makefile:1: *** no compiler.  Stop.",
        "make: *** [Makefile:3: a] Error 2",
        "make: *** Waiting for unfinished jobs....",
        "awk: fatal: no such file",
        "make: *** [Makefile:5: b] Error 2",
        "make: *** wait: No child processes.  Stop.",
    ])  # fmt: skip
    assert (first.target, first.reason) == ("make", "no compiler")
    assert (second.target, second.lines) == ("b", ("awk: fatal: no such file",))


def test_a_compile_error_beside_make_s_own_failure_is_shown_once() -> None:
    first, second = find_failures([*COMPILE_ERROR[:9], NO_RULE[3], COMPILE_ERROR[9]])
    assert first.lines == (NO_RULE[3],)
    assert "error: unknown type name" in second.lines[0]


def test_thousands_of_lines_are_cut_in_the_middle() -> None:
    lines = ["  LD      vmlinux.o", *(f"warning {n}" for n in range(9000))]
    (failure,) = find_failures([*lines, "make[2]: *** [x:1: vmlinux.o] Error 1"])
    assert len(failure.lines) < 50
    assert failure.lines[0] == "warning 0"
    assert failure.lines[-1] == "warning 8999"


def test_success_has_no_failures() -> None:
    assert find_failures(["  CC      init/main.o", "make: Leaving directory '/x'"]) == []
