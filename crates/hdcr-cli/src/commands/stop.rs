//! `hdcr stop`: the end of a job, for good.

use std::time::Duration;

use serde::Serialize;

use super::Surrounding;
use super::checkpoint::no_such_job;
use crate::cli::StopArgs;
use crate::failure::{Class, Failure, Result};
use crate::output::Report;
use crate::registry::{Answer, Request};

/// A job that has ended.
#[derive(Debug, Serialize)]
struct Stopped {
    name: String,
    status: u8,
}

impl Report for Stopped {
    fn text(&self) -> String {
        format!(
            "job {} has ended with status {}; its checkpoints are kept (`hdcr rm {}` removes them)",
            self.name, self.status, self.name
        )
    }
}

pub(crate) fn run(at: &Surrounding<'_>, args: &StopArgs) -> Result<u8> {
    let limit = args.grace + Duration::from_mins(1);
    match at.registry()?.ask(&args.name, &Request::Stop { grace: args.grace }, limit)? {
        Some(Answer::Stopped(status)) => {
            at.output.result(&Stopped { name: args.name.clone(), status });
            Ok(0)
        }
        Some(Answer::Failed(failure)) => Err(failure),
        Some(_) => Err(Failure::new(Class::Internal, "answer", "the keeper gave an answer to another question")),
        None => Err(no_such_job(&args.name)),
    }
}
