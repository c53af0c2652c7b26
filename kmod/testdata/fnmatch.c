/*
 * Judge of TestMatch and FuzzMatch. Reads pairs of pattern and name, each as its
 * length (32 bits, this machine's byte order) and its bytes, and answers each
 * pair with one byte: 1 if fnmatch(pattern, name, 0) matches, else 0.
 */
#include <fnmatch.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static char *string(void)
{
	uint32_t n;
	char *s;

	if (fread(&n, sizeof n, 1, stdin) != 1)
		exit(0);
	s = malloc((size_t)n + 1);
	if (!s || fread(s, 1, n, stdin) != n)
		exit(1);
	s[n] = 0;
	return s;
}

int main(void)
{
	unsetenv("POSIXLY_CORRECT");
	for (;;) {
		char *pattern = string(), *name = string();
		putchar(fnmatch(pattern, name, 0) == 0);
		fflush(stdout);
		free(pattern);
		free(name);
	}
}
