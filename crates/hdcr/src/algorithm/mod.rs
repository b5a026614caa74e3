//! A checkpoint algorithm of one's own: the trait, and how a program serves it to `hdcr run --algorithm exec:COMMAND`.
//!
//! Observations in, decisions out; the program reads a line and writes one ([`line`](self::line)), and has no other contact
//! with the job. What it does not answer in time, or at all, is decided without it.

pub mod line;

use std::io::{self, BufRead, Write};

pub use hdcr_policy::algorithm::*;

use line::{Answer, Asked, Hello, Question, Welcome};

/// Serves an algorithm on standard input and output until HDCR closes them.
pub fn serve(algorithm: &mut dyn Algorithm) -> io::Result<()> {
    serve_on(algorithm, io::stdin().lock(), io::stdout().lock())
}

/// The same on any pair of streams.
pub fn serve_on(algorithm: &mut dyn Algorithm, mut input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut text = String::new();
    if input.read_line(&mut text)? == 0 {
        return Ok(());
    }
    let hello: Hello = serde_json::from_str(&text)?;
    let looks = algorithm.looks();
    let welcome =
        Welcome { hdcr: line::VERSION.min(hello.hdcr), name: Some(algorithm.name().to_owned()), idle: looks.idleness };
    say(&mut output, &welcome)?;
    loop {
        text.clear();
        if input.read_line(&mut text)? == 0 {
            return Ok(());
        }
        let Question { id, asked } = serde_json::from_str(&text)?;
        say(&mut output, &answer(algorithm, id, &asked))?;
    }
}

fn say(output: &mut impl Write, message: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string(message)?;
    text.push('\n');
    output.write_all(text.as_bytes())?;
    output.flush()
}

fn answer(algorithm: &mut dyn Algorithm, id: u64, asked: &Asked) -> Answer {
    let nothing = Answer { id, ..Answer::default() };
    match asked {
        Asked::Decide { now_s, event, facts } => {
            let facts = Facts::from(facts);
            let seen = Observation { now: line::time(*now_s), event: Event::from(*event), facts: &facts };
            let decision = algorithm.decide(&seen);
            Answer {
                checkpoint: decision.checkpoint.map(|order| order.kind.into()),
                wake_s: decision.wake.map(|wake| wake.as_secs_f64()),
                ..nothing
            }
        }
        Asked::Forget { kept } => {
            let kept: Vec<Kept> = kept.iter().map(Kept::from).collect();
            Answer { forget: Some(algorithm.forget(&kept)), ..nothing }
        }
        Asked::Recover { fault, kept } => {
            let kept: Vec<Kept> = kept.iter().map(Kept::from).collect();
            Answer { recover: Some(algorithm.recover(&Fault::from(*fault), &kept).into()), ..nothing }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_algorithm_is_served_line_by_line() {
        let mut fixed = Fixed::new(Duration::from_secs(10));
        let questions = concat!(
            r#"{"hdcr":1,"job":"sim","within_ms":2000,"longest":32768}"#,
            "\n",
            r#"{"id":1,"ask":"decide","event":"started","now_s":0.5,"facts":{}}"#,
            "\n",
            r#"{"id":2,"ask":"decide","event":"due","now_s":10.5,"facts":{"kept":[]},"later":1}"#,
            "\n",
            r#"{"id":3,"ask":"forget","kept":[{"number":1},{"number":2},{"number":3},{"number":4}]}"#,
            "\n",
            r#"{"id":4,"ask":"recover","fault":{"again":true},"kept":[{"number":3},{"number":4}]}"#,
            "\n",
        );
        let mut said = Vec::new();
        serve_on(&mut fixed, questions.as_bytes(), &mut said).unwrap();
        let expected = concat!(
            r#"{"hdcr":1,"name":"fixed","idle":false}"#,
            "\n",
            r#"{"id":1,"wake_s":10.5}"#,
            "\n",
            r#"{"id":2,"checkpoint":"any"}"#,
            "\n",
            r#"{"id":3,"forget":[1]}"#,
            "\n",
            r#"{"id":4,"recover":{"rollback":3}}"#,
            "\n",
        );
        assert_eq!(String::from_utf8(said).unwrap(), expected);
    }
}
