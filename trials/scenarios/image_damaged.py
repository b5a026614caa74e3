"""A large image with one wrong byte in the middle: nothing of the program comes to life, and its files stay as they are."""
from scenario import *

program = compile_c("large", r"""
#define PAGES 24576UL
int main(void) {
    int fd = open("data", O_RDWR | O_CREAT, 0644);
    MUST(write(fd, "before", 6) == 6);
    unsigned long *all = mmap(0, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), word = 88172645463325252;
    MUST(all != MAP_FAILED);
    for (unsigned long i = 0; i < PAGES * 512; i++) {
        word ^= word << 13; word ^= word >> 7; word ^= word << 17;
        all[i] = word;
    }
    say("ready", "");
    until("go");
    word = 88172645463325252;
    for (unsigned long i = 0; i < PAGES * 512; i++) {
        word ^= word << 13; word ^= word >> 7; word ^= word << 17;
        MUST(all[i] == word);
    }
    say("result", "right");
    pause();
    return 0;
}
""")
child = start(program)
ready()
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
write("data", "newer", mode=0o644)
size = os.path.getsize("image")
must(size > 90 << 20, f"an image of {size} bytes")
for part in (2, 3, 10):
    place = size * (part - 1) // part
    with open("image", "r+b") as image:
        image.seek(place)
        old = image.read(1)
        image.seek(place)
        image.write(bytes([old[0] ^ 1]))
    hdcr("restore", "image", "--detach", ok=False)
    gone(child.pid)
    must(read("data") == "newer", "a file was rolled back")
    with open("image", "r+b") as image:
        image.seek(place)
        image.write(old)
must(restore("image") == child.pid, "another pid")
must(result() == "right", f"restore: {read('result')}")
