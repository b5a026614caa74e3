// A tracer such as a debugger: `tracer PID` attaches, lets the process run, says so, and stays until its input ends.
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/ptrace.h>
#include <unistd.h>

int main(int count, char **words) {
    pid_t pid = count > 1 ? atoi(words[1]) : 0;
    char byte;
    if (ptrace(PTRACE_SEIZE, pid, 0, 0)) return 1;
    if (write(1, "traced\n", 7) != 7) return 1;
    while (read(0, &byte, 1) > 0) {}
    return 0;
}
