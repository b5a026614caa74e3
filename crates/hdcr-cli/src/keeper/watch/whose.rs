//! Whose process it was that did something to a file.

use hdcr_policy::kin::{self, Whose};
use hdcr_sys::births;

use super::Watch;
use crate::process;

impl Watch {
    pub(super) fn hear_births(&mut self) {
        let Some(births) = &self.births else { return };
        let events = births.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "births cannot be read");
            vec![births::Event::Overflow]
        });
        for event in events {
            self.kin.tell(match event {
                births::Event::Born { parent, child } => kin::Event::Born { parent, child },
                births::Event::Ended(pid) => kin::Event::Ended(pid),
                births::Event::Overflow => kin::Event::Lost,
            });
        }
    }

    pub(super) fn whose(&mut self, pid: i32) -> Whose {
        if self.births.is_some() { self.kin.whose(pid) } else { self.whose_by_proc(pid) }
    }

    /// Without births: the line of parents now, and of one that is gone what was seen when it lived: what it did last is heard
    /// after its death.
    fn whose_by_proc(&mut self, pid: i32) -> Whose {
        const MANY: usize = 4096;
        let whose = self.whose_now(pid);
        match whose {
            Whose::Unknown if self.sighted.contains(&pid) => return Whose::Job,
            Whose::Job => drop(self.sighted.insert(pid)),
            Whose::Own | Whose::Other | Whose::Unknown => drop(self.sighted.remove(&pid)),
        }
        if self.sighted.len() > MANY {
            self.sighted.retain(|pid| process::lives(*pid));
        }
        whose
    }

    fn whose_now(&self, pid: i32) -> Whose {
        let mut at = pid;
        for _ in 0..1000 {
            if at == self.keeper {
                return if at == pid { Whose::Own } else { Whose::Job };
            }
            if self.kin.is_apart(at) {
                return if at == pid { Whose::Own } else { Whose::Other };
            }
            match process::stat(at) {
                Some(stat) if stat.ppid.0 > 0 => at = stat.ppid.0,
                Some(_) => return Whose::Other,
                None => return Whose::Unknown,
            }
        }
        Whose::Unknown
    }
}
