//! Real processes and real file systems. Where this user or this kernel cannot watch, each test says so and is skipped.

use std::process::{Child, Command};

use hdcr_policy::touched::{Moved, New};

use super::*;

struct Scene {
    directory: tempfile::TempDir,
    watch: Watch,
    _alone: fs::File,
}

impl Scene {
    fn new() -> Option<Self> {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(directory: tempfile::TempDir) -> Option<Self> {
        // Each watch hears what all these tests do: one at a time.
        let alone = fs::File::create(std::env::temp_dir().join("hdcr-watch-tests.lock")).unwrap();
        alone.lock().unwrap();
        match Watch::start(std::process::id().cast_signed()) {
            Ok(watch) => Some(Self { directory, watch, _alone: alone }),
            Err(failure) => {
                println!("skipped: {failure}");
                None
            }
        }
    }

    fn start(&self, script: &str) -> Child {
        Command::new("sh").args(["-ec", script]).current_dir(self.directory.path()).spawn().unwrap()
    }

    fn job(&self, script: &str) {
        assert!(self.start(script).wait().unwrap().success());
    }

    /// By a child of a process that is set apart.
    fn foreign(&mut self, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", "sh -ec \"$0\"; exit $?", script]).current_dir(self.directory.path());
        let mut child = command.spawn().unwrap();
        self.watch.set_apart(child.id().cast_signed());
        assert!(child.wait().unwrap().success());
    }

    /// Waits until times of files are safely later than now. By a file elsewhere: another test may fork while it is open, and its
    /// child close it when it is gone, which is heard as a write to that name.
    fn pass_a_tick(&self) {
        let (before, probe) = (now(), self.directory.path().with_extension("probe"));
        for _ in 0..10_000_000 {
            fs::write(&probe, b"x").unwrap();
            if look(&probe).unwrap().changed > before + Duration::from_millis(25) {
                break;
            }
        }
        fs::remove_file(&probe).unwrap();
    }

    fn mark(&mut self, number: u64) -> Vec<String> {
        self.pass_a_tick();
        let touched = self.watch.mark();
        self.watch.thawed();
        self.watch.committed(number);
        self.pass_a_tick();
        touched.iter().filter_map(|path| self.name(path)).collect()
    }

    fn name(&self, path: &Path) -> Option<String> {
        let name = path.strip_prefix(self.directory.path()).ok().map(|path| path.display().to_string());
        // What has no name is called by its number.
        name.filter(|name| !name.starts_with('#'))
    }

    /// What is different, in words; other tests of this process leave traces elsewhere.
    fn since(&mut self, number: u64) -> String {
        let changes = self.watch.roll_back(number).unwrap();
        assert!(!changes.incomplete);
        let mut words = Vec::new();
        let new = |new: &New| Some(format!("new{} {}", if new.further { " name" } else { "" }, self.name(&new.at)?));
        words.extend(changes.new.iter().filter_map(new));
        words.extend(
            changes
                .moved
                .iter()
                .filter_map(|Moved { at, home, .. }| Some(format!("{}>{}", self.name(at)?, self.name(home)?))),
        );
        words.extend(changes.directories.iter().filter_map(|path| Some(format!("gone {}/", self.name(path)?))));
        words.extend(changes.lost.iter().filter_map(|path| Some(format!("lost {}", self.name(path)?))));
        words.extend(changes.written.iter().filter_map(|path| Some(format!("written {}", self.name(path)?))));
        words.extend(changes.relinked.iter().filter_map(|(path, _)| Some(format!("written as {}", self.name(path)?))));
        words.extend(
            changes.lengths.iter().filter_map(|length| Some(format!("{}={}", self.name(&length.path)?, length.size))),
        );
        words.extend(
            changes.doubtful.iter().filter_map(|(path, doubt)| Some(format!("{doubt:?} {}", self.name(path)?))),
        );
        words.join(", ")
    }

    /// By one process, which can `make` a file. Whether there is a python3.
    fn python(&self, script: &str) -> bool {
        if Command::new("python3").arg("-V").output().is_err() {
            println!("skipped: there is no python3");
            return false;
        }
        let script = format!("import os\ndef make(name): open(name, 'w').close()\n{script}");
        let mut python = Command::new("python3");
        assert!(python.args(["-c", &script]).current_dir(self.directory.path()).status().unwrap().success());
        true
    }

    fn check_python(&mut self, script: &str, expected: &str) {
        self.mark(1);
        if self.python(script) {
            assert_eq!(self.since(1), expected, "{script}");
        }
    }

    fn check(&mut self, script: &str, expected: &str) {
        self.mark(1);
        self.job(script);
        assert_eq!(self.since(1), expected, "{script}");
    }
}

const BEFORE: &str = "echo one > log; echo a > data; mkdir d; echo x > d/x; echo y > d/y; echo old > conf";

/// What is heard of a file comes when its directory has another name already.
#[test]
fn what_was_made_in_a_directory_that_was_renamed_is_known_there() {
    let Some(mut scene) = Scene::new() else { return };
    scene.mark(1);
    scene.job("for i in 1 2 3; do mkdir d$i; echo x > d$i/c; mkdir d$i/s; echo x > d$i/s/c; mv d$i e$i; done");
    let touched = scene.mark(2);
    for name in ["e1/c", "e2/s/c", "e3/c"] {
        assert!(touched.iter().any(|known| known == name), "{name} is not in {touched:?}");
    }
    assert!(!touched.iter().any(|known| known.starts_with('d')), "{touched:?}");
}

#[test]
fn what_a_child_does_is_in_the_table() {
    let Some(mut scene) = Scene::new() else { return };
    scene.foreign(BEFORE);
    // A directory in which it has worked is known by name also when it is gone.
    scene.job("echo 0 > start; echo 0 > d/z");
    scene.check("echo two >> log", "written log, log=4");
    scene.check("echo t > t; mv t conf", "new conf, lost conf");
    scene.check("echo t > t; mv t fresh", "new fresh");
    scene.check("mv log log.1; echo three > log", "new log, log.1>log");
    scene.check("/bin/rm data; rm -r d", "gone d/, lost d/x, lost d/y, lost d/z, lost data");
    scene.check("mkdir n; echo 1 > n/1; rm n/1; echo 2 > n/2; echo t > t; rm t", "new n");
    scene.check("cat conf > /dev/null; exec 3<> conf; exec 3>&-", "");
}

#[test]
fn a_rename_is_told_from_a_rename_and_a_removal() {
    let Some(mut scene) = Scene::new() else { return };
    scene.foreign("for i in 1 2 3; do echo $i > $i; done");
    scene.check_python(
        "os.rename('1', 'a'); os.unlink('2')
os.rename('3', 'b'); os.link('b', 'c')",
        "new name c, a>1, b>3, lost 2",
    );
}

/// The kernel joins what happens to one file to what has happened to it before and was not read yet.
#[test]
fn what_a_rename_has_replaced_is_known_although_what_is_heard_was_joined() {
    let Some(mut scene) = Scene::new() else { return };
    scene.foreign("for i in 1 2 3 4 5; do echo $i > $i; done");
    // The removal is heard with what comes before the rename.
    scene.check_python("make('t'); os.rename('1', 'a'); os.unlink('t')", "a>1");
    scene.check_python("os.chmod('2', 0o600); os.rename('3', 'b'); os.unlink('2'); make('u')", "new u, b>3, lost 2");
    // That another name is gone is heard with the new name.
    scene.check_python("os.link('4', '4.bak'); make('v'); os.rename('v', '4')", "new 4, new name 4.bak, lost 4");
    scene.check_python(
        "os.link('5', 'w'); make('v'); os.rename('v', '5'); os.unlink('w'); make('x')",
        "new 5, new x, lost 5",
    );
    scene.check_python("make('y'); os.link('y', 'z'); os.unlink('y'); os.rename('u', 'c')", "new z, c>u");
}

/// A file has a further name; it is written under that one, and that one is renamed or goes.
#[test]
fn what_is_written_under_a_further_name_is_known() {
    let Some(mut scene) = Scene::new() else { return };
    scene.foreign("for i in 1 2 3 4 5; do echo $i > $i; mkdir d$i; done");
    let add = "\ndef add(name):\n  with open(name, 'a') as file: file.write('x')\n";
    scene.check_python(&format!("os.link('1', 'd1/x'){add}add('d1/x')"), "new name d1/x, written as d1/x");
    scene.check_python(
        &format!("os.link('2', 'd2/x'){add}os.rename('d2', 'e2'); add('e2/x')"),
        "new name e2/x, e2>d2, written as e2/x",
    );
    scene.check_python(&format!("os.link('3', 'd3/x'){add}add('d3/x'); os.unlink('d3/x')"), "written as d3/x");
    scene.check_python(&format!("os.link('4', 'd4/x'){add}add('4')"), "new name d4/x, written 4");
    scene.check_python("make('6'); os.link('6', '7'); os.link('5', '8')", "new 6, new 7, new name 8");
}

/// What was made without a name gets one: no rename has replaced anything.
#[test]
fn a_name_for_what_had_none_says_nothing_of_a_rename() {
    let Some(mut scene) = Scene::new() else { return };
    scene.foreign("for i in 1 2 3; do echo $i > $i; mkdir d$i; done");
    let unnamed = "
def unnamed(name):
    import ctypes
    fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o644)
    assert ctypes.CDLL(None).linkat(-100, b'/proc/self/fd/%d' % fd, -100, name, 0x400) == 0
    os.close(fd)
";
    scene.check_python(&format!("os.rename('d1', 'e1'){unnamed}unnamed(b'r1')"), "new r1, e1>d1");
    scene.check_python(&format!("os.rename('1', 'f1'){unnamed}unnamed(b's1')"), "new s1, f1>1");
    scene.check_python(
        &format!("os.rename('d2', 'e2'); os.link('2', '2.bak'); make('v'); os.rename('v', '2'){unnamed}unnamed(b'r2')"),
        "new 2, new name 2.bak, new r2, e2>d2, lost 2",
    );
}

#[test]
fn an_empty_directory_that_a_rename_replaces_is_gone() {
    let Some(mut scene) = Scene::new() else { return };
    scene.foreign("for i in 1 2 3 4 5 6 7 8; do mkdir d$i e$i; done");
    scene.check("mv -T d1 e1", "e1>d1, gone e1/");
    // The change of its mode comes before the rename, and takes what the rename would tell.
    scene.check_python("os.chmod('e2', 0o700); os.rename('d2', 'e2')", "e2>d2, gone e2/");
    scene.check_python("os.chmod('e3', 0o700); os.rmdir('e3'); os.rename('d3', 'e3')", "e3>d3, gone e3/");
    scene.check_python("os.rename('d4', 'f4'); os.chmod('e4', 0o700); os.rmdir('e4')", "f4>d4, gone e4/");
    scene.check_python("os.rename('d7', 'e7'); os.rename('d8', 'f8')", "e7>d7, f8>d8, gone e7/");
    scene.check_python("os.rename('d5', 'f5'); os.chmod('f5', 0o700); make('f5/x')", "new f5/x, f5>d5");
    scene.check("mkdir n; mkdir m; touch n/x; mv -T n m; mv -T m e5; mv -T d6 e6", "new e5, e6>d6, gone e5/, gone e6/");
}

/// A rename that was done before, and undone, is heard once.
#[test]
fn what_was_renamed_to_and_fro_is_known_where_it_is() {
    let Some(mut scene) = Scene::new() else { return };
    scene.foreign("for i in 1 2 3 4 5 8 9 10 11; do echo $i > $i; done; mkdir d h; echo x > d/x");
    scene.job("echo 6 > 6; echo 7 > 7; echo 8 > d/8");
    scene.check_python("for _ in range(3): os.rename('1', 'c'); os.rename('c', '1')", "");
    scene.check_python("os.rename('2', 'e'); os.rename('e', '2'); os.rename('2', 'e'); os.rename('e', 'f')", "f>2");
    let to_and_fro =
        |name: &str| format!("os.rename('{name}', 'x'); os.rename('x', '{name}'); os.rename('{name}', 'x')");
    scene.check_python(&format!("{}; os.unlink('x')", to_and_fro("10")), "lost 10");
    scene.check_python(&format!("{}; open('x', 'a').close()", to_and_fro("11")), "x>11, written 11, 11=3");
    let swap = "\ndef swap():\n  os.rename('3', 't'); os.rename('4', '3'); os.rename('t', '4')\n";
    scene.check_python(&format!("{swap}swap(); swap(); swap()"), "3>4, 4>3");
    scene.check_python(
        "import ctypes
def exchange(a, b): assert ctypes.CDLL(None).renameat2(-100, a, -100, b, 2) == 0
for _ in range(3): exchange(b'5', b'8')
for _ in range(3): exchange(b'9', b'h')
make('9/n'); os.rename('9', 'i')",
        "new i/n, 5>8, 8>5, h>9, i>h",
    );
    scene.check_python("os.rename('6', 'a'); os.rename('a', '6'); os.rename('6', 'a')", "a>6");
    let again = "os.rename('7', 'b'); os.rename('b', '7'); os.rename('7', 'b')
os.rename('d', 'g'); os.rename('g', 'd'); os.rename('d', 'g'); make('g/y')";
    if !scene.python(again) {
        return;
    }
    let touched = scene.mark(2);
    for name in ["b", "g/8", "g/y"] {
        assert!(touched.iter().any(|known| known == name), "{name} is not in {touched:?}");
    }
}

#[test]
fn directories_that_were_exchanged_several_times_are_known_where_they_are() {
    for times in 1..6 {
        let Some(mut scene) = Scene::new() else { return };
        scene.foreign("mkdir d e; echo x > d/x; echo y > e/y");
        scene.job("echo 1 > d/1; echo 2 > e/2");
        let script = format!(
            "import ctypes
for _ in range({times}): assert ctypes.CDLL(None).renameat2(-100, b'd', -100, b'e', 2) == 0
make('d/n')"
        );
        scene.mark(1);
        if !scene.python(&script) {
            return;
        }
        let (there, new) = if times % 2 == 1 {
            (["e/1", "d/2", "d/n"], "new d/n, d>e, e>d")
        } else {
            (["d/1", "e/2", "d/n"], "new d/n")
        };
        let touched = scene.mark(2);
        for name in there {
            assert!(touched.iter().any(|known| known == name), "{times}: {name} is not in {touched:?}");
        }
        assert_eq!(scene.since(1), new, "{times}");
    }
}

#[test]
fn exchanged_names_are_told_from_renames() {
    let Some(mut scene) = Scene::new() else { return };
    scene.foreign("for i in 1 2 3 4; do echo $i > $i; done; mkdir d e; echo x > d/x; echo y > e/y");
    let script = "import ctypes, os
def exchange(a, b):
    assert ctypes.CDLL(None, use_errno=True).renameat2(-100, a, -100, b, 2) == 0
exchange(b'1', b'2')
exchange(b'3', b'd')
open('3/z', 'w').close(); os.rename('4', '3/4')
exchange(b'3', b'e')
open('3/n', 'w').close(); os.unlink('e/x')";
    if Command::new("python3").arg("-V").status().is_err() {
        println!("skipped: there is no python3");
        return;
    }
    scene.job("echo 0 > d/0; echo 0 > e/0");
    scene.mark(1);
    let python = Command::new("python3").args(["-c", script]).current_dir(scene.directory.path()).status().unwrap();
    assert!(python.success());
    assert_eq!(scene.since(1), "new 3/n, new e/z, 1>2, 2>1, 3>e, d>3, e>d, e/4>4, lost d/x");
}

#[test]
fn files_of_others_are_not_of_the_job() {
    let Some(mut scene) = Scene::new() else { return };
    scene.foreign(BEFORE);
    scene.mark(1);
    scene.foreign("echo z > theirs; (echo z >> log); mv data data.1; rm d/x");
    fs::write(scene.directory.path().join("of-the-keeper"), b"x").unwrap();
    scene.job("echo mine > mine; echo both > both; cat theirs d/y > /dev/null");
    scene.watch.drain();
    scene.foreign("echo theirs > .both; mv .both both");
    assert_eq!(scene.since(1), "new mine, Foreign both");
}

#[test]
fn what_workers_do_is_not_foreign() {
    let Some(mut scene) = Scene::new() else { return };
    scene.job("echo one > log; echo two > data; echo 3 > other");
    scene.mark(1);
    // The last to close what the job has written.
    let mut worker = scene.start("echo more >> log; echo x > image");
    scene.watch.set_apart(worker.id().cast_signed());
    assert!(worker.wait().unwrap().success());
    let mut restorer = scene.start("echo again > data; echo y > unknown; mv other other.1");
    scene.watch.set_apart_restorer(restorer.id().cast_signed());
    assert!(restorer.wait().unwrap().success());
    assert_eq!(scene.since(1), "written log, log=4");
}

/// What a roll-back makes anew is known by what is heard, and not by who has its name when the keeper comes to look.
#[test]
fn what_is_made_anew_is_known_although_the_job_has_gone_on() {
    let Some(mut scene) = Scene::new() else { return };
    scene.mark(1);
    scene.job("echo c > c");
    scene.mark(2);
    scene.job("rm c");
    assert!(scene.watch.roll_back(2).is_some());
    let mut restorer = scene.start("echo c > .new; exec mv .new c");
    scene.watch.set_apart_restorer(restorer.id().cast_signed());
    assert!(restorer.wait().unwrap().success());
    let made = identity(&scene.directory.path().join("c")).unwrap();
    scene.job("mv c d; echo other > c");
    scene.watch.rolled_back();
    scene.watch.end();
    let new = scene.watch.since(1).unwrap().new;
    let at_d = new.iter().find(|new| new.at.ends_with("d")).unwrap();
    assert_eq!(at_d.identity, made);
    assert_eq!(scene.since(2), "new c, d>c");
}

/// In a network namespace of its own, as containers have it, nobody is told of births.
#[test]
fn what_a_process_did_last_is_known_without_births() {
    let Some(mut scene) = Scene::new() else { return };
    scene.watch.births = None;
    scene.mark(1);
    scene.job("mkfifo go");
    let mut child = scene.start("echo a > a; read x < go; echo b > b; echo c > c; mv c d");
    for _ in 0..10_000_000 {
        scene.watch.drain();
        if !scene.watch.sighted.is_empty() && scene.directory.path().join("a").exists() {
            break;
        }
    }
    fs::write(scene.directory.path().join("go"), "x\n").unwrap();
    assert!(child.wait().unwrap().success());
    let since = scene.since(1);
    assert!(since.contains("new a") && since.contains("new b"), "{since}");
}

#[test]
fn many_short_lived_processes_are_known_when_they_are_gone() {
    let Some(mut scene) = Scene::new() else { return };
    scene.mark(1);
    scene.job("i=0; while [ $i -lt 200 ]; do /bin/touch f$i; i=$((i+1)); done");
    let changes = scene.watch.roll_back(1).unwrap();
    let ours = changes.new.iter().filter(|new| scene.name(&new.at).is_some());
    assert_eq!((ours.count(), changes.incomplete), (200, false));
}

#[test]
fn touched_files_are_handed_over_and_a_rollback_rewinds() {
    let Some(mut scene) = Scene::new() else { return };
    scene.job("echo a > a; echo b > b; rm b; echo c > c");
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(scene.watch.fd(), rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut polled, Some(&rustix::time::Timespec::default())).unwrap(), 1);
    assert_eq!(scene.mark(1), ["c", "a"]);
    scene.job("echo d > d; echo 2 >> a");
    assert_eq!(scene.mark(2), ["a", "d", "c"]);
    scene.job("echo e > e");
    assert_eq!(scene.since(2), "new e");
    scene.watch.not_rolled_back();
    assert_eq!(scene.since(1), "new d, new e, written a, a=2");
    assert_eq!(scene.since(1), "");
    scene.watch.keep(&[2]);
    assert!(scene.watch.roll_back(1).is_none());
}

#[test]
fn lost_events_are_noticed() {
    let Some(mut scene) = Scene::new() else { return };
    scene.mark(1);
    let most: usize = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events")
        .map_or(16384, |text| text.trim().parse().unwrap());
    if most > 100_000 {
        println!("skipped: the queue of events is too long here to be filled");
        return;
    }
    let directory = scene.directory.path().to_owned();
    for number in 0..=most {
        fs::write(directory.join(format!("{number}")), b"").unwrap();
    }
    assert!(scene.watch.roll_back(1).unwrap().incomplete);
}

#[test]
fn tmpfs_is_watched_too() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else { return };
    let Some(mut scene) = Scene::at(directory) else { return };
    if scene.watch.blind().iter().any(|line| line.starts_with("/dev/shm")) {
        println!("skipped: this tmpfs cannot be watched");
        return;
    }
    scene.foreign("echo one > log");
    scene.job("echo 0 > start");
    scene.check("echo two >> log; echo n > n", "new n, written log, log=4");
}

#[test]
fn without_births_only_living_processes_are_known() {
    let Some(mut scene) = Scene::new() else { return };
    scene.watch.births = None;
    scene.job("echo 0 > start");
    scene.mark(1);
    let mut living = Command::new("sh")
        .args(["-ec", "echo 1 > a; /bin/touch gone; read x"])
        .current_dir(scene.directory.path())
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..10_000_000 {
        if scene.directory.path().join("gone").exists() {
            break;
        }
    }
    // The one that made the second file is a zombie at most, and then still known; here it is gone.
    let pid = living.id();
    let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for _ in 0..10_000_000 {
        if children().is_empty() {
            break;
        }
    }
    scene.watch.drain();
    drop(living.stdin.take());
    living.wait().unwrap();
    assert_eq!(scene.since(1), "new a");
}
