//! `hdcr ps`: the jobs of this user that run now.

use std::time::Duration;

use serde::Serialize;

use super::Surrounding;
use crate::duration;
use crate::failure::Result;
use crate::output::{Report, table};
use crate::registry::{Answer, Request, Status};

/// All that answered.
#[derive(Debug, Serialize)]
struct Jobs {
    jobs: Vec<Status>,
    /// Jobs whose keeper lives and does not answer.
    silent: Vec<String>,
}

impl Report for Jobs {
    fn text(&self) -> String {
        let row = |job: &Status| {
            let newest = match (job.newest, job.newest_age_s) {
                (Some(number), Some(age)) => format!("@{number}, {} ago", duration::show(Duration::from_secs(age))),
                (Some(number), None) => format!("@{number}"),
                (None, _) => "none".to_owned(),
            };
            let state = if job.trouble.is_some() { format!("{}!", job.phase) } else { job.phase.clone() };
            let pid = if job.private_pids { format!("{} inside", job.pid) } else { job.pid.to_string() };
            let restarts = format!("{}/{}", job.restarts, job.restarts_allowed);
            vec![
                job.name.clone(),
                pid,
                state,
                duration::show(Duration::from_secs(job.ran_s)),
                newest,
                restarts,
                job.command.clone(),
            ]
        };
        if self.jobs.is_empty() && self.silent.is_empty() {
            return "no jobs are running".to_owned();
        }
        let rows: Vec<Vec<String>> = self.jobs.iter().map(row).collect();
        let mut text = table(&["NAME", "PID", "STATE", "RAN", "CHECKPOINT", "RESTARTS", "COMMAND"], &rows);
        for job in &self.jobs {
            if let Some(trouble) = &job.trouble {
                text = format!("{text}\n{}: the last checkpoint failed: {trouble}", job.name);
            }
        }
        for name in &self.silent {
            text = format!("{text}\n{name}: its keeper does not answer");
        }
        text
    }
}

pub(crate) fn run(at: &Surrounding<'_>) -> Result<u8> {
    let registry = at.registry()?;
    let mut found = Jobs { jobs: Vec::new(), silent: Vec::new() };
    for name in registry.names()? {
        match registry.ask(&name, &Request::Status, Duration::from_secs(5)) {
            Ok(Some(Answer::Status(status))) => found.jobs.push(status),
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => found.silent.push(name),
        }
    }
    at.output.result(&found);
    Ok(0)
}
