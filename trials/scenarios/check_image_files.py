"""A file that has changed in place since the checkpoint is in the way of a restore: `check IMAGE` says so too, also to root."""
from scenario import *

for policy, change, code in [("auto", "CHANGED!", "file-changed"), ("verify", "CHANGED!", "file-changed"), ("truncate", "abc", "file-shorter")]:
    folder = os.path.join("/var/tmp", f"hdcr-check-{os.getpid()}")
    os.makedirs(folder, exist_ok=True)
    write(f"{folder}/read", "original")
    child = start("sleep", "1000", stdin=open(f"{folder}/read", "r+" if policy == "truncate" else "r"))
    hdcr("checkpoint", child.pid, "-o", "image", "--kill", "--file-policy", f"{folder}={policy}")
    child.wait()
    with open(f"{folder}/read", "r+") as file:
        file.truncate(0)
        file.write(change)
    checked = hdcr("check", "./image", ok=None)
    text = hdcr("restore", "./image", "--detach", ok=None)
    must(f"[{code}]" in text, f"{policy}: the restore says: {text}")
    os.remove(f"{folder}/read"); os.rmdir(folder)
    print(f"{policy}: check says {'the same' if code in checked else 'it is possible'}")
    wrong = code not in checked
    must(not wrong, f"{policy}: the restore is refused ({code}), and check has said: {checked}")
