"""sqlite killed inside a transaction begun after the checkpoint: no stale hot journal, right rows, whole database."""
import sqlite3
from scenario import *

write("work.py", """
import os, sqlite3, time
db = sqlite3.connect("work.db", isolation_level=None)
db.execute("pragma journal_mode=delete")
db.execute("pragma cache_size=10")
db.execute("create table if not exists t (n integer primary key, pad text)")
db.execute("begin")
db.executemany("insert into t values (?, ?)", ((n, "x" * 500) for n in range(2000)))
db.execute("commit")
open("ready", "w").close()
while not os.path.exists("begin"):
    time.sleep(0.002)
first = db.execute("select max(n) from t").fetchone()[0] + 1
db.execute("begin")
db.execute("update t set pad = 'y' || n || pad")
db.executemany("insert into t values (?, ?)", ((first + n, "z" * 500) for n in range(2000)))
open("inside", "w").close()
while not os.path.exists("go"):
    time.sleep(0.002)
db.execute("commit")
db.close()
open("result", "w").write("right")
""")
for runs_on in ["restore", "run"]:
    job = Job("python3", "work.py") if runs_on == "run" else None
    pid = job.main()[0] if job else start("python3", "work.py").pid
    ready()
    job.checkpoint() if job else hdcr("checkpoint", pid, "-o", "image")
    write("begin", "")
    for _ in range(3):
        ready("inside")
        os.remove("inside")
        must(os.path.exists("work.db-journal"), "no journal: the scenario does not show what it should")
        if job:
            job.crash()
        else:
            kill(pid)
            restore("image")
    ready("inside")
    must(result() == "right", "the program failed")
    job.end() if job else gone(pid)
    db = sqlite3.connect("work.db")
    must(db.execute("pragma integrity_check").fetchone()[0] == "ok", f"{runs_on}: the database is damaged")
    rows = db.execute("select count(*), sum(pad like 'y%'), sum(pad like 'z%') from t").fetchone()
    must(rows == (4000, 2000, 2000), f"{runs_on}: rows {rows}")
    db.close()
    for name in ["ready", "inside", "begin", "go", "result", "work.db", "work.db-journal"]:
        if os.path.exists(name):
            os.remove(name)
