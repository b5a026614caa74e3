//! Asking the keeper of a job: what it answers, or why it does not. Never waits for a keeper that is stopped.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::failure::{Class, Failure, Result};
use crate::process;
use crate::progress::Step;
use crate::registry::{Answer, Registry, Request, Status, line};

/// The longest answer.
const LIMIT: u64 = 16 << 20;
/// A keeper that does what it is for hears a request within this time; killing all of a job takes it longest.
const HEARS: Duration = Duration::from_secs(20);
/// Between two looks at a keeper that says nothing.
const LOOK: Duration = Duration::from_millis(500);

/// An answer and who gave it.
#[derive(Debug)]
pub(crate) struct Answered {
    /// The pid that the keeper has here, whatever namespace it lives in.
    pub(crate) keeper: Option<i32>,
    pub(crate) answer: Answer,
}

/// What a user wants of a keeper.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) name: &'a str,
    pub(crate) request: &'a Request,
    /// The answer is given up then.
    pub(crate) limit: Duration,
}

/// Asks the keeper of a job; `None` when there is none. What it tells of its progress goes to `on_the_way`.
pub(crate) fn ask(
    registry: &Registry,
    question: &Question<'_>,
    on_the_way: &mut dyn FnMut(Step),
) -> Result<Option<Answered>> {
    let Some(stream) = registry.connect(question.name)? else { return Ok(None) };
    let who = rustix::net::sockopt::socket_peercred(&stream).ok();
    if who.is_some_and(|who| who.uid != rustix::process::geteuid()) {
        let message = format!("what answers as job {} belongs to somebody else", question.name);
        return Err(Failure::refused("registry-owner", message));
    }
    let keeper = who.map(|who| who.pid.as_raw_nonzero().get()).filter(|pid| *pid > 0);
    let talk = Talk { name: question.name, keeper, stream };
    talk.must_go_on()?;
    let doing = || Failure::system::<std::io::Error>(format!("asking the keeper of job {}", question.name));
    talk.stream.set_read_timeout(Some(LOOK)).map_err(doing())?;
    talk.stream.set_write_timeout(Some(HEARS)).map_err(doing())?;
    (&talk.stream).write_all(&line(question.request)?).map_err(doing())?;
    let mut reader = BufReader::new(&talk.stream);
    let mut end = Instant::now() + question.limit.min(HEARS);
    loop {
        let Some(text) = talk.next_line(&mut reader, end)? else { return Ok(None) };
        let answer = serde_json::from_slice(&text);
        match answer.map_err(Failure::system(format_args!("reading the answer of job {}", question.name)))? {
            Answer::Accepted => end = Instant::now() + question.limit,
            Answer::Progress(step) => on_the_way(step),
            answer @ (Answer::Status(_) | Answer::Checkpointed(_) | Answer::Stopped(_) | Answer::Failed(_)) => {
                return Ok(Some(Answered { keeper, answer }));
            }
        }
    }
}

/// How a job stands, with the numbers that its processes have here; `None` when no keeper of this name lives.
pub(crate) fn status(registry: &Registry, name: &str, limit: Duration) -> Result<Option<Status>> {
    let question = Question { name, request: &Request::Status, limit };
    let Some(Answered { keeper, answer: Answer::Status(mut status) }) = ask(registry, &question, &mut |_| {})? else {
        return Ok(None);
    };
    if let Some(keeper) = keeper {
        status.keeper = keeper;
        if status.private_pids {
            status.pid_inside = status.pid;
            status.pid = status.pid.and_then(|inside| crate::namespace::outer_pid(keeper, inside));
        }
    }
    Ok(Some(status))
}

/// A connection to a keeper.
struct Talk<'a> {
    name: &'a str,
    keeper: Option<i32>,
    stream: UnixStream,
}

impl Talk<'_> {
    /// A keeper that was stopped answers nobody.
    fn must_go_on(&self) -> Result<()> {
        let state = self.keeper.and_then(process::stat).map(|stat| stat.state);
        match (self.keeper, state) {
            (Some(keeper), Some(b'T' | b't')) => Err(self
                .stuck(&format!("its process {keeper} is stopped"))
                .remedy(format!("`kill -CONT {keeper}`, or `fg` in its shell, lets it go on; then try again"))),
            _ => Ok(()),
        }
    }

    fn stuck(&self, why: &str) -> Failure {
        Failure::new(Class::Changed, "keeper-stuck", format!("the keeper of job {} does not answer: {why}", self.name))
    }

    /// The next line; `None` when the keeper hangs up.
    fn next_line(&self, reader: &mut BufReader<&UnixStream>, end: Instant) -> Result<Option<Vec<u8>>> {
        let mut text = Vec::new();
        loop {
            let room = LIMIT.saturating_sub(text.len() as u64);
            match reader.by_ref().take(room).read_until(b'\n', &mut text) {
                Ok(_) => return Ok(text.ends_with(b"\n").then_some(text)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.must_go_on()?;
                    if Instant::now() >= end {
                        let keeper = self.keeper.map_or_else(|| "?".to_owned(), |keeper| keeper.to_string());
                        return Err(self.stuck(&format!("its process {keeper} says nothing")).remedy(format!(
                            "look what it waits for (`cat /proc/{keeper}/wchan`); `hdcr ps` tells when it answers again"
                        )));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => {
                    return Err(Failure::system(format_args!("asking the keeper of job {}", self.name))(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use hdcr_image::JobName;

    use super::*;
    use crate::registry::{Client, Heard};

    fn ask_sim(registry: &Registry, request: &Request, limit: Duration) -> Result<Option<Answer>> {
        let question = Question { name: "sim", request, limit };
        Ok(ask(registry, &question, &mut |_| {})?.map(|answered| answered.answer))
    }

    #[test]
    fn a_request_and_its_answer_pass() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(&directory.path().join("x".repeat(120))).unwrap();
        let name = JobName::new("sim").unwrap();
        let listener = registry.listen(&name, Path::new("/a/store")).unwrap();
        let stop = Request::Stop { grace: Duration::from_secs(1) };
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask_sim(&registry, &stop, Duration::from_secs(30)));
            listener.socket.set_nonblocking(false).unwrap();
            let mut client = Client::accept(&listener).unwrap();
            client.stream.set_nonblocking(false).unwrap();
            assert!(matches!(client.hear(), Heard::Request(Request::Stop { .. })));
            assert!(client.is_there());
            client.tell(&Answer::Accepted);
            client.answer(&Answer::Stopped(143));
            assert_eq!(asked.join().unwrap().unwrap(), Some(Answer::Stopped(143)));
        });
        assert!(
            ask_sim(&Registry::open(directory.path()).unwrap(), &Request::Status, Duration::ZERO).unwrap().is_none()
        );
    }

    #[test]
    fn a_keeper_that_says_nothing_is_named_and_hears_that_nobody_waits() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(directory.path()).unwrap();
        let listener = registry.listen(&JobName::new("sim").unwrap(), Path::new("/a/store")).unwrap();
        let failure = ask_sim(&registry, &Request::Status, Duration::ZERO).unwrap_err();
        assert_eq!(failure.code, "keeper-stuck");
        assert!(failure.message.contains(&std::process::id().to_string()), "{failure}");
        let mut client = Client::accept(&listener).unwrap();
        assert!(matches!(client.hear(), Heard::Request(Request::Status)));
        assert!(!client.is_there());
    }
}
