"""The rules, one file per family of hazards; :func:`klto.check.rule.all_rules` finds them."""
