// A program of another runtime: goroutines on threads of their own, memory that is collected, a line for each that asks.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
)

var turns []atomic.Int64

func work(n int) {
	runtime.LockOSThread()
	for {
		garbage := make([]int64, 4096)
		for i := range garbage {
			garbage[i] = turns[n].Load()
		}
		turns[n].Add(1)
		time.Sleep(time.Millisecond)
	}
}

func main() {
	threads, _ := strconv.Atoi(os.Args[1])
	turns = make([]atomic.Int64, threads)
	for n := range turns {
		go work(n)
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		for n := range turns {
			for before := turns[n].Load(); turns[n].Load() == before; {
				time.Sleep(time.Millisecond)
			}
		}
		fmt.Println("works")
	}
}
