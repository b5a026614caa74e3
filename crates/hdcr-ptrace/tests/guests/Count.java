// A program of another runtime: threads, memory that is collected, a line for each that asks.
import java.util.Scanner;
import java.util.concurrent.atomic.AtomicLongArray;

class Count {
    static AtomicLongArray turns;

    static void work(int n) {
        while (true) {
            long[] garbage = new long[4096];
            java.util.Arrays.fill(garbage, turns.get(n));
            turns.addAndGet(n, 1 + (garbage[0] & 0));
            Thread.yield();
            try {
                Thread.sleep(1);
            } catch (InterruptedException ended) {
                return;
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        turns = new AtomicLongArray(Integer.parseInt(arguments[0]));
        for (int i = 0; i < turns.length(); i++) {
            int n = i;
            Thread thread = new Thread(() -> work(n));
            thread.setDaemon(true);
            thread.start();
        }
        System.out.println("ready");
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            lines.nextLine();
            for (int n = 0; n < turns.length(); n++) {
                for (long before = turns.get(n); turns.get(n) == before; ) {
                    Thread.sleep(1);
                }
            }
            System.out.println("works");
        }
    }
}
