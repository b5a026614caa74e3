"""A periodic timer behind a descriptor that expires while it is looked at goes on after a roll-back."""
from scenario import *

program = compile_c("short", r"""
#include <poll.h>
#include <stdint.h>
#include <sys/timerfd.h>
int main(void) {
    struct itimerspec period = {{0, 50000}, {0, 50000}};
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    uint64_t count;
    MUST(timer >= 0 && timerfd_settime(timer, 0, &period, NULL) == 0);
    say("ready", "");
    for (unsigned long turn = 1; access("go", F_OK); turn++) {
        struct pollfd polled = {timer, POLLIN, 0};
        char text[32];
        MUST(poll(&polled, 1, 5000) == 1);
        MUST(read(timer, &count, sizeof count) == sizeof count && count > 0);
        if (turn % 64) continue;
        snprintf(text, sizeof text, "%lu", turn);
        say("turn", text);
    }
    say("result", "fine");
}
""")
job = Job(program)
ready()
for _ in range(8):
    job.checkpoint()
    job.crash()
    last = read("turn")
    until("the timer", lambda: read("turn") != last or read("result"))
    must(not read("result"), read("result"))
must(result() == "fine", read("result"))
job.end()
