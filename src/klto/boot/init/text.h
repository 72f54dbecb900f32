// SPDX-License-Identifier: MIT
/* ---- memory and text. The compiler may call memcpy and memset whatever the flags. -------------- */

void *memcpy(void *to, const void *from, ulong size)
{
	for (ulong i = 0; i < size; i++)
		((char *)to)[i] = ((const char *)from)[i];
	return to;
}

void *memset(void *to, int value, ulong size)
{
	for (ulong i = 0; i < size; i++)
		((char *)to)[i] = (char)value;
	return to;
}

/* A line under construction; what does not fit is dropped. */
struct text {
	ulong size;
	char bytes[640];
};

static void add(struct text *text, const char *string)
{
	for (; *string && text->size < sizeof(text->bytes); string++)
		text->bytes[text->size++] = *string;
}

/* Text that is not ours: one that holds a line end must not make two records. */
static void add_printable(struct text *text, const char *string)
{
	for (; *string && text->size < 512; string++)
		text->bytes[text->size++] = *string >= ' ' && *string <= '~' ? *string : '?';
}

static void add_number(struct text *text, ulong number)
{
	char digits[21] = { 0 };
	int at = 20;

	do
		digits[--at] = (char)('0' + number % 10);
	while ((number /= 10));
	add(text, digits + at);
}

/* Digits at the start of a string. */
static ulong to_number(const char *digits)
{
	ulong number = 0;

	for (; *digits >= '0' && *digits <= '9'; digits++)
		number = number * 10 + (ulong)(*digits - '0');
	return number;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* An error as the kernel returns it, as in "-2". */
static void add_error(struct text *text, long error)
{
	add(text, error < 0 ? "-" : "");
	add_number(text, (ulong)(error < 0 ? -error : error));
}

/* Less than, equal to or greater than 0, by bytes. */
static int compare(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return (unsigned char)*a - (unsigned char)*b;
}

/* Behind the first `byte`, or 0 when there is none. */
static char *behind_byte(char *string, char byte)
{
	while (*string && *string != byte)
		string++;
	return *string ? string + 1 : 0;
}

static ulong length(const char *string)
{
	ulong size = 0;

	while (string[size])
		size++;
	return size;
}

static int ends_with(const char *string, const char *end)
{
	ulong size = length(string), wanted = length(end);

	return size >= wanted && same(string + size - wanted, end);
}

/* Behind `prefix`, or 0 when the string does not begin with it. */
static const char *behind(const char *string, const char *prefix)
{
	while (*prefix && *string == *prefix)
		string++, prefix++;
	return *prefix ? 0 : string;
}
