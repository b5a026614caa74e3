// A guest on a virtual machine with many threads of its own: `java Busy.java DIR`. Turns and errors go to DIR/progress.
import java.io.RandomAccessFile;
import java.util.concurrent.atomic.AtomicLongArray;

public class Busy {
    public static void main(String[] words) throws Exception {
        int lanes = 4;
        AtomicLongArray turns = new AtomicLongArray(lanes);
        AtomicLongArray errors = new AtomicLongArray(1);
        for (int i = 0; i < lanes; i++) {
            int at = i;
            Thread thread = new Thread(() -> {
                long[] block = new long[1 << 14];
                for (int k = 0; k < block.length; k++) block[k] = k * 31L;
                while (true) {
                    for (int k = 0; k < block.length; k++) if (block[k] != k * 31L) errors.incrementAndGet(0);
                    byte[] litter = new byte[1 << 12];
                    if (litter[at] != 0) errors.incrementAndGet(0);
                    turns.incrementAndGet(at);
                    try { Thread.sleep(2); } catch (InterruptedException e) { errors.incrementAndGet(0); }
                }
            });
            thread.setDaemon(true);
            thread.start();
        }
        try (RandomAccessFile file = new RandomAccessFile(words[0] + "/progress", "rw")) {
            while (true) {
                StringBuilder text = new StringBuilder(String.format("%016d\n", errors.get(0)));
                for (int i = 0; i < lanes; i++) text.append(String.format("%016d\n", turns.get(i)));
                file.seek(0);
                file.write(text.toString().getBytes());
                Thread.sleep(2);
            }
        }
    }
}
