"""`--json` of commands on the store and on parallel jobs: one object on standard output and nothing else, of an error too."""
import json
from scenario import *


def said(*words, ok=True, fields=()):
    """The one object, which has just these fields."""
    found = []
    for options in ([], ["--quiet"], ["-v"]):
        # What changes something is asked once.
        if options and words[0] in ("unpin", "job"):
            continue
        with open("out", "w") as out, open("err", "w") as err:
            hdcr(*words, "--json", *options, ok=ok, stdout=out, stderr=err)
        text = read("out")
        must(text.endswith("\n") and text.count("\n") == 1, f"{words}: not one line: {text!r}")
        found.append(json.loads(text))
        must(isinstance(found[-1], dict) and set(found[-1]) == set(fields), f"{words}: other fields: {text}")
        must(ok or not read("err").strip() or options == ["-v"], f"{words}: says more: {read('err')}")
    return found[0]


def error(status_, class_, code, *words):
    """An error, by its class and its code."""
    found = said(*words, ok=False, fields=["error"])["error"]
    must({"class", "code", "message"} <= set(found) <= {"class", "code", "message", "remedy", "refusals"}, f"{words}: {found}")
    must((found["class"], found["code"]) == (class_, code), f"{words}: {found}")
    done = subprocess.run([HDCR, *words, "--json"], capture_output=True, check=False)
    must(done.returncode == status_, f"{words}: {done.returncode}, not {status_}")
    return found


job = Job("sleep", "1000", options=["--keep", "9"])
job.main()
for _ in range(4):
    # A program that does not change is checkpointed all the same.
    job.checkpoint()
name = job.name
must(said("pin", f"{name}@1", "--note", "a \"note\"\\", fields=["pinned"]) == {"pinned": [f"{name}@1"]}, "pin")
must(said("pin", f"{name}@1", f"{name}@2", name, fields=["pinned"])["pinned"] == [f"{name}@{n}" for n in (1, 2, 4)], "pin of several")
rows = json.loads(hdcr("list", name, "--json"))["checkpoints"]
must([row.get("pinned") for row in rows if row["snapshot"] == f"{name}@1"] == [""], f"pinned anew, without a note: {rows}")
must(said("unpin", f"{name}@2", fields=["unpinned"]) == {"unpinned": [f"{name}@2"]}, "unpin")

PRUNED = ["dry_run", "removed", "freed", "kept"]
dry = said("prune", name, "--keep", "1", "--dry-run", fields=PRUNED)
must(dry["dry_run"] is True and sorted(dry["removed"]) == [f"{name}@2", f"{name}@3"] and dry["freed"] > 0, f"prune --dry-run: {dry}")
must([kept["snapshot"] for kept in dry["kept"]] == [f"{name}@1"] and "pinned" in dry["kept"][0]["why"], f"what stays: {dry}")
must(len(json.loads(hdcr("list", name, "--json"))["checkpoints"]) == 4, "a dry run has removed something")
wet = said("prune", name, "--keep", "1", fields=PRUNED)
must(wet["dry_run"] is False and wet["removed"] == dry["removed"] and wet["freed"] == dry["freed"], f"prune: {wet}, not {dry}")
must(said("prune", "--keep", "1", fields=PRUNED)["removed"] == [], "prune of all")
must(sorted(said("unpin", name, fields=["unpinned"])["unpinned"]) == [f"{name}@1", f"{name}@4"], "unpin of all")
must(json.loads(hdcr("unpin", name, "--json")) == {}, "unpin of none")

error(69, "refused", "no-such-checkpoint", "pin", f"{name}@99")
error(69, "refused", "no-such-checkpoint", "unpin", "nobody")
error(69, "refused", "no-such-checkpoint", "prune", "nobody", "--keep", "1")
error(64, "usage", "usage", "prune")
error(64, "usage", "usage", "pin", f"{name}@first")
must(error(69, "refused", "no-such-job", "job", "status", "nobody")["message"], "no message")
hdcr("stop", name)
job.keeper.wait(20)

# Parallel jobs.
must(said("job", "list", fields=["jobs"]) == {"jobs": []}, "a store without parallel jobs")
both = subprocess.Popen([HDCR, "job", "run", "--name", "both", "--members", "2", "--every", "1h", "--", "sleep", "1000"],
                        stdin=subprocess.DEVNULL, stdout=open("job.out", "w"), stderr=open("job.err", "w"), start_new_session=True)
done = until("a checkpoint", lambda: [done for done in [subprocess.run([HDCR, "job", "checkpoint", "both", "--json"], capture_output=True,
             text=True, check=False)] if done.returncode == 0])[0]
made = json.loads(done.stdout)
must(set(made) == {"job", "checkpoint", "stopped_us", "bytes"} and made["job"] == "both" and made["bytes"] > 0, f"job checkpoint: {made}")
row = {"job": "both", "state": "running", "members": 2, "checkpoint": made["checkpoint"], "status": None}
must(said("job", "list", fields=["jobs"]) == {"jobs": [row]}, "job list")
now = said("job", "status", "both", fields=["job", "state", "checkpoint", "rollbacks", "members"])
must((now["job"], now["checkpoint"], now["rollbacks"]) == ("both", made["checkpoint"], 0), f"job status: {now}")
must([member["member"] for member in now["members"]] == [0, 1], f"members: {now}")
for member in now["members"]:
    must(set(member) == {"member", "host", "takes_part", "status"} and member["takes_part"] and member["host"], f"a member: {member}")
    must(member["status"] is None, f"a member has ended: {member}")
must(said("job", "abort", "both", fields=["job"]) == {"job": "both"}, "job abort")
until("the end of the job", lambda: both.poll() is not None)
listed = said("job", "list", fields=["jobs"])["jobs"]
must([(job["state"], job["checkpoint"]) for job in listed] == [("ended", made["checkpoint"])] and listed[0]["status"] is not None, f"ended: {listed}")
error(69, "refused", "job-ended", "job", "abort", "both")
