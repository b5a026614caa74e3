//! Hooks: what a program does before each checkpoint, after it, and when it was restored.
//!
//! They run on the agent's thread, one after the other: those before a checkpoint in ascending order, the others in
//! descending order, so that what was made ready last goes on first.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::outcome::Restored;
use crate::{agent, process};

/// The program does not want the checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Veto {
    /// Nor any other one, as long as this process lives.
    pub permanent: bool,
    /// A number of its own.
    pub code: i32,
    /// Why.
    pub text: String,
}

/// How a checkpoint went for which hooks were called, as far as it is known when the program goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// The program was captured. The image may still fail to become durable.
    Captured,
    /// There was no checkpoint after all.
    Nothing,
}

type Before = dyn Fn() -> Result<(), Veto> + Send + Sync;
type Later = dyn Fn(After) + Send + Sync;
type Anew = dyn Fn(&Restored) + Send + Sync;

#[derive(Clone)]
enum Work {
    Before(Arc<Before>),
    After(Arc<Later>),
    Restored(Arc<Anew>),
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before(_) => "Before",
            Self::After(_) => "After",
            Self::Restored(_) => "Restored",
        })
    }
}

/// A hook that was set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hook(pub(crate) u64);

impl Hook {
    /// Takes it away. One that runs at the moment comes to its end.
    pub fn remove(self) {
        process::this().hooks.lock().all.retain(|entry| entry.number != self.0);
    }
}

/// Before each checkpoint. Whoever takes too long is not waited for: the checkpoint is taken without it.
pub fn before(order: i32, hook: impl Fn() -> Result<(), Veto> + Send + Sync + 'static) -> Hook {
    process::this().hooks.add(order, Work::Before(Arc::new(hook)))
}

/// After each checkpoint before which hooks were called, whatever became of it.
pub fn after(order: i32, hook: impl Fn(After) + Send + Sync + 'static) -> Hook {
    process::this().hooks.add(order, Work::After(Arc::new(hook)))
}

/// In each life that begins from an image.
pub fn on_restored(order: i32, hook: impl Fn(&Restored) + Send + Sync + 'static) -> Hook {
    process::this().hooks.add(order, Work::Restored(Arc::new(hook)))
}

/// The hooks of a process.
#[derive(Debug, Default)]
pub(crate) struct Hooks(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    last: u64,
    all: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    order: i32,
    number: u64,
    work: Work,
}

impl Hooks {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, order: i32, work: Work) -> Hook {
        let mut list = self.lock();
        list.last += 1;
        let number = list.last;
        list.all.push(Entry { order, number, work });
        list.all.sort_by_key(|entry| (entry.order, entry.number));
        drop(list);
        agent::begin();
        Hook(number)
    }

    /// As they are now; none of them is called under the lock.
    fn all(&self) -> Vec<Entry> {
        self.lock().all.clone()
    }

    pub(crate) fn before(&self) -> Result<(), Veto> {
        self.all().iter().try_for_each(|entry| match &entry.work {
            Work::Before(hook) => hook(),
            Work::After(_) | Work::Restored(_) => Ok(()),
        })
    }

    pub(crate) fn after(&self, how: After) {
        for entry in self.all().iter().rev() {
            if let Work::After(hook) = &entry.work {
                hook(how);
            }
        }
    }

    pub(crate) fn restored(&self, from: &Restored) {
        for entry in self.all().iter().rev() {
            if let Work::Restored(hook) = &entry.work {
                hook(from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_run_in_their_order_and_back() {
        let (hooks, said) = (Hooks::default(), Arc::new(Mutex::new(Vec::new())));
        for (order, name) in [(2, "b"), (1, "a"), (2, "c")] {
            let (first, second) = (Arc::clone(&said), Arc::clone(&said));
            let say = move || first.lock().unwrap().push(name);
            hooks.lock().all.push(Entry {
                order,
                number: 1,
                work: Work::Before(Arc::new(move || {
                    say();
                    Ok(())
                })),
            });
            let after = move |_| second.lock().unwrap().push(name);
            hooks.lock().all.push(Entry { order, number: 1, work: Work::After(Arc::new(after)) });
        }
        hooks.lock().all.sort_by_key(|entry| entry.order);
        hooks.before().unwrap();
        hooks.after(After::Captured);
        assert_eq!(*said.lock().unwrap(), ["a", "b", "c", "c", "b", "a"]);
        let veto = Veto { permanent: false, code: 3, text: "not now".to_owned() };
        let says = veto.clone();
        hooks.lock().all.push(Entry { order: 9, number: 9, work: Work::Before(Arc::new(move || Err(says.clone()))) });
        assert_eq!(hooks.before(), Err(veto));
    }
}
