//! `hdcr stop`: the end of a job, for good; also of one that has lost its keeper.

use std::time::Duration;

use serde::Serialize;

use super::Surrounding;
use super::checkpoint::no_such_job;
use crate::asking::{self, Question};
use crate::cli::StopArgs;
use crate::failure::{Class, Failure, Result};
use crate::orphan;
use crate::output::Report;
use crate::registry::{Answer, Request};

/// A job that has ended.
#[derive(Debug, Serialize)]
struct Stopped {
    name: String,
    /// Not known of one that had lost its keeper.
    status: Option<u8>,
}

impl Report for Stopped {
    fn text(&self) -> String {
        let name = &self.name;
        let how = match self.status {
            Some(status) => format!("has ended with status {status}"),
            None => "had lost its keeper; its program has been ended".to_owned(),
        };
        format!("job {name} {how}; its checkpoints are kept (`hdcr rm {name}` removes them)")
    }
}

pub(crate) fn run(at: &Surrounding<'_>, args: &StopArgs) -> Result<u8> {
    let limit = args.grace.saturating_add(Duration::from_mins(1));
    let registry = at.registry()?;
    let request = Request::Stop { grace: args.grace };
    let question = Question { name: &args.name, request: &request, limit };
    let name = args.name.clone();
    let status = match asking::ask(&registry, &question, &mut |_| {})?.map(|answered| answered.answer) {
        Some(Answer::Stopped(status)) => Some(status),
        Some(Answer::Failed(failure)) => return Err(failure),
        Some(_) => {
            return Err(Failure::new(Class::Internal, "answer", "the keeper gave an answer to another question"));
        }
        None => {
            let orphan = orphan::find(&registry, &name, &at.settings.store)?;
            orphan.ok_or_else(|| no_such_job(at, &name))?.end(&registry, args.grace, at.trusts)?;
            None
        }
    };
    at.output.result(&Stopped { name, status })?;
    Ok(0)
}
