//! Settings: defaults, then `/etc/hdcr/config.toml`, the user's file, the environment, and flags; the last one wins.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::algorithm::Choice;
use crate::cli::{Command, Common, FileArgs};
use crate::duration;
use crate::failure::{Class, Failure, Result};
use crate::kinds::{
    Compress, EndPolicy, Every, FilePolicy, FilePolicyRule, Increments, Lazy, MechanismChoice, Share, Snapshot,
};
use crate::names;

/// What of the environment and the user matters for places of files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// The user is root.
    pub(crate) root: bool,
    /// Number of the user.
    pub(crate) uid: u32,
    pub(crate) home: Option<PathBuf>,
    pub(crate) config_home: Option<PathBuf>,
    pub(crate) state_home: Option<PathBuf>,
    pub(crate) runtime_dir: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment for places of files")]
    pub(crate) fn of_this_process() -> Self {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let uid = rustix::process::geteuid();
        Self {
            root: uid.is_root(),
            uid: uid.as_raw(),
            home: absolute("HOME"),
            config_home: absolute("XDG_CONFIG_HOME"),
            state_home: absolute("XDG_STATE_HOME"),
            // After a change of the user it may be still that of the one before.
            runtime_dir: absolute("XDG_RUNTIME_DIR").filter(|path| is_owned(path, uid.as_raw())),
        }
    }

    /// Where checkpoints lie when nobody says otherwise.
    fn store(&self) -> Result<PathBuf> {
        if self.root {
            return Ok(PathBuf::from("/var/lib/hdcr"));
        }
        let state = self.state_home.clone().or_else(|| Some(self.home.as_ref()?.join(".local/state")));
        let state = state.ok_or_else(|| {
            Failure::usage("neither HOME nor XDG_STATE_HOME is set").remedy("name a store with --store or HDCR_STORE")
        })?;
        Ok(state.join("hdcr"))
    }

    /// Where the sockets of running jobs lie.
    pub(crate) fn jobs(&self) -> PathBuf {
        if self.root {
            return PathBuf::from("/run/hdcr/jobs");
        }
        match &self.runtime_dir {
            Some(run) => run.join("hdcr/jobs"),
            None => PathBuf::from(format!("/tmp/hdcr-{}/jobs", self.uid)),
        }
    }

    /// The configuration files that are read, the later one wins.
    fn config_files(&self) -> Vec<PathBuf> {
        let user = self.config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")));
        let mut files = vec![PathBuf::from("/etc/hdcr/config.toml")];
        files.extend(user.map(|user| user.join("hdcr/config.toml")));
        files
    }
}

fn is_owned(path: &Path, uid: u32) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_dir() && std::os::unix::fs::MetadataExt::uid(&found) == uid)
}

/// A configuration file. Every key may be left out; a key that is not known is an error.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) store: Option<PathBuf>,
    #[serde(default)]
    pub(crate) run: RunConfig,
    #[serde(default)]
    pub(crate) checkpoint: CheckpointConfig,
    #[serde(default)]
    pub(crate) restore: RestoreConfig,
    #[serde(default)]
    pub(crate) files: FilesConfig,
}

/// `[run]`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RunConfig {
    pub(crate) every: Option<Every>,
    pub(crate) algorithm: Option<Choice>,
    pub(crate) keep: Option<NonZeroUsize>,
    #[serde(default, deserialize_with = "time")]
    pub(crate) keep_for: Option<Duration>,
    #[serde(default, deserialize_with = "size")]
    pub(crate) keep_size: Option<u64>,
    pub(crate) budget: Option<Share>,
    pub(crate) increments: Option<Increments>,
    pub(crate) lazy: Option<Lazy>,
    pub(crate) restarts: Option<u32>,
    #[serde(default)]
    pub(crate) on: Vec<String>,
}

/// `[checkpoint]`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointConfig {
    #[serde(default, deserialize_with = "time")]
    pub(crate) timeout: Option<Duration>,
    pub(crate) ends: Option<EndPolicy>,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) compress: Option<Compress>,
    pub(crate) mechanism: Option<MechanismChoice>,
}

/// `[restore]`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreConfig {
    #[serde(default, deserialize_with = "time")]
    pub(crate) timeout: Option<Duration>,
}

/// `[files]`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FilesConfig {
    #[serde(default)]
    pub(crate) always: Vec<PathBuf>,
    #[serde(default, deserialize_with = "size")]
    pub(crate) limit: Option<u64>,
    #[serde(default, deserialize_with = "size")]
    pub(crate) programs: Option<u64>,
    #[serde(default)]
    pub(crate) policy: BTreeMap<PathBuf, FilePolicy>,
}

fn time<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Duration>, D::Error> {
    duration::parse(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<u64>, D::Error> {
    duration::parse_size(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

/// What a checkpoint does with files.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Files {
    #[serde(with = "crate::paths::list")]
    pub(crate) always: Vec<PathBuf>,
    pub(crate) limit: u64,
    /// Bytes of programs and libraries that a store keeps at most.
    #[serde(default)]
    pub(crate) programs: u64,
    pub(crate) policies: Vec<FilePolicyRule>,
    /// And with ends that lead out of the program.
    pub(crate) ends: EndPolicy,
    /// And with memory.
    pub(crate) snapshot: Snapshot,
    #[serde(default)]
    pub(crate) compress: Compress,
    /// And what stops the program.
    #[serde(default)]
    pub(crate) mechanism: MechanismChoice,
}

impl Command {
    /// Whether it is of no use without a store.
    pub(crate) fn needs_store(&self) -> bool {
        match self {
            Self::Run(_)
            | Self::List(_)
            | Self::Pin(_)
            | Self::Unpin(_)
            | Self::Rm(_)
            | Self::Prune(_)
            | Self::Job(_)
            | Self::Worker
            | Self::Program(_) => true,
            Self::Checkpoint(args) => args.output.is_none(),
            Self::Restore(args) => !names::is_path(&args.image),
            Self::Show(args) => !names::is_path(&args.image.image),
            Self::Verify(args) => !names::is_path(&args.image),
            Self::Check(_)
            | Self::Ps
            | Self::Stop(_)
            | Self::Doctor
            | Self::Agent(_)
            | Self::Completions(_)
            | Self::Manpage(_)
            | Self::Probe
            | Self::Rule(_) => false,
        }
    }
}

/// What can be nothing, for commands that need no store.
const NO_STORE: &str = "/nonexistent/hdcr";

/// Configuration files and flags together.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) surroundings: Surroundings,
    pub(crate) store: PathBuf,
    pub(crate) config: Config,
}

impl Settings {
    /// Reads the configuration files and puts the environment and flags over them.
    ///
    /// `needs_store`: where no place for a store is known, that is an error; else there is none.
    pub(crate) fn read(common: &Common, needs_store: bool) -> Result<Self> {
        let surroundings = Surroundings::of_this_process();
        let config = if let Some(path) = &common.config {
            let missing = || Failure::usage(format!("there is no configuration file {}", path.display()));
            read_file(path)?.ok_or_else(missing)?
        } else {
            let mut config = Config::default();
            for path in surroundings.config_files() {
                match read_file(&path) {
                    Ok(over) => config = merge(config, over.unwrap_or_default()),
                    // One that nobody asked for, such as that of root's home after a change of the user.
                    Err(failure) if failure.class == Class::Failed => {
                        // The process outside has said so already.
                        if common.inside.is_none() && common.entered.is_none() {
                            tracing::warn!("{}; it is left out", failure.message);
                        }
                    }
                    Err(failure) => return Err(failure),
                }
            }
            config
        };
        let store = common.store.clone().or_else(|| config.store.clone()).map_or_else(|| surroundings.store(), Ok);
        let store = if needs_store { store? } else { store.unwrap_or_else(|_| PathBuf::from(NO_STORE)) };
        Ok(Self { surroundings, store: absolute(&store)?, config })
    }

    /// What a checkpoint does with files, with flags over the configuration.
    pub(crate) fn files(&self, args: &FileArgs) -> Result<Files> {
        let config = &self.config.files;
        let always: Result<Vec<PathBuf>> =
            config.always.iter().chain(&args.always).map(|path| absolute(path)).collect();
        let mut policies: BTreeMap<PathBuf, FilePolicy> = config.policy.clone();
        for rule in &args.policies {
            policies.insert(absolute(&rule.path)?, rule.policy);
        }
        let ends = args.ends.or(self.config.checkpoint.ends).unwrap_or_default();
        let snapshot = args.snapshot.or(self.config.checkpoint.snapshot).unwrap_or_default();
        let compress = args.compress.or(self.config.checkpoint.compress).unwrap_or_default();
        let mechanism = args.mechanism.or(self.config.checkpoint.mechanism).unwrap_or_default();
        let policies = policies.into_iter().map(|(path, policy)| FilePolicyRule { path, policy }).collect();
        let limit = args.limit.or(config.limit).unwrap_or(64 << 20);
        let programs = config.programs.unwrap_or(2 << 30);
        Ok(Files { always: always?, limit, programs, policies, ends, snapshot, compress, mechanism })
    }

    /// Where restores keep what their roll-back of files replaces.
    pub(crate) fn journals(&self) -> PathBuf {
        self.store.join(".rollback")
    }

    /// The longest time for a checkpoint.
    pub(crate) fn checkpoint_timeout(&self, flag: Option<Duration>) -> Duration {
        flag.or(self.config.checkpoint.timeout).unwrap_or(Duration::from_secs(30))
    }

    /// The longest time for a restore, when somebody has chosen one.
    pub(crate) fn restore_timeout(&self, flag: Option<Duration>) -> Option<Duration> {
        flag.or(self.config.restore.timeout)
    }
}

/// The longest time for a restore of an image of so many bytes: what was chosen, or else what a slow disk takes. A job that
/// is too large for its time could never be rolled back.
pub(crate) fn restore_time(chosen: Option<Duration>, stored: u64) -> Duration {
    const BASE: Duration = Duration::from_secs(30);
    /// Bytes in a second.
    const SLOW: u64 = 16 << 20;
    chosen.unwrap_or_else(|| BASE.saturating_add(Duration::from_secs(stored / SLOW)))
}

/// A path as seen from the root, without looking at the file system beyond the current directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Failure::system(format_args!("finding the place of {}", path.display())))
}

fn read_file(path: &Path) -> Result<Option<Config>> {
    /// A device or a pipe may have no end.
    const MOST: u64 = 1 << 20;
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST).read_to_string(&mut text));
    match read.map(|_| text) {
        Ok(text) => match toml::from_str(&text) {
            Ok(config) => Ok(Some(config)),
            Err(error) => {
                let text = error.to_string().replace("TOML parse error at ", "");
                let text = text
                    .replace("a nonzero usize", "a whole number from 1 on")
                    .replace("expected u32", "expected a whole number");
                Err(Failure::usage(format!("wrong configuration in {}, {}", path.display(), text.trim_end())))
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::IsADirectory) => Err(Failure::usage(
            format!("{} is no configuration file: {}", path.display(), crate::failure::chain(&error)),
        )),
        Err(error) => Err(Failure::system(format_args!("reading configuration file {}", path.display()))(error)),
    }
}

/// One file over another, key by key; lists of the later one replace, policies by path are joined.
fn merge(under: Config, over: Config) -> Config {
    let list = |under: Vec<PathBuf>, over: Vec<PathBuf>| if over.is_empty() { under } else { over };
    let mut policy = under.files.policy;
    policy.extend(over.files.policy);
    Config {
        store: over.store.or(under.store),
        run: RunConfig {
            every: if over.run.algorithm.is_some() { over.run.every } else { over.run.every.or(under.run.every) },
            algorithm: if over.run.every.is_some() {
                over.run.algorithm
            } else {
                over.run.algorithm.or(under.run.algorithm)
            },
            keep: over.run.keep.or(under.run.keep),
            keep_for: over.run.keep_for.or(under.run.keep_for),
            keep_size: over.run.keep_size.or(under.run.keep_size),
            budget: over.run.budget.or(under.run.budget),
            increments: over.run.increments.or(under.run.increments),
            lazy: over.run.lazy.or(under.run.lazy),
            restarts: over.run.restarts.or(under.run.restarts),
            on: if over.run.on.is_empty() { under.run.on } else { over.run.on },
        },
        checkpoint: CheckpointConfig {
            timeout: over.checkpoint.timeout.or(under.checkpoint.timeout),
            ends: over.checkpoint.ends.or(under.checkpoint.ends),
            snapshot: over.checkpoint.snapshot.or(under.checkpoint.snapshot),
            compress: over.checkpoint.compress.or(under.checkpoint.compress),
            mechanism: over.checkpoint.mechanism.or(under.checkpoint.mechanism),
        },
        restore: RestoreConfig { timeout: over.restore.timeout.or(under.restore.timeout) },
        files: FilesConfig {
            always: list(under.files.always, over.files.always),
            limit: over.files.limit.or(under.files.limit),
            programs: over.files.programs.or(under.files.programs),
            policy,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_file_wins_key_by_key() {
        let under: Config =
            toml::from_str("store = \"/a\"\n[run]\nevery = \"1m\"\nkeep = 7\n[files.policy]\n\"/x\" = \"ignore\"")
                .unwrap();
        let over: Config =
            toml::from_str("[run]\nevery = \"500ms\"\n[files]\nlimit = \"1G\"\n[files.policy]\n\"/y\" = \"content\"")
                .unwrap();
        let both = merge(under, over);
        assert_eq!(both.store, Some(PathBuf::from("/a")));
        assert_eq!(
            (both.run.every, both.run.keep),
            (Some(Every::Fixed(Duration::from_millis(500))), NonZeroUsize::new(7))
        );
        assert_eq!(both.files.limit, Some(1 << 30));
        assert_eq!(both.files.policy.len(), 2);
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for text in ["stor = \"/a\"", "[run]\nevery = 30", "[run]\nevery = \"30\"", "[files.policy]\n\"/x\" = \"keep\""]
        {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_large_image_has_the_time_that_it_takes_unless_somebody_has_chosen() {
        let seconds = Duration::from_secs;
        assert_eq!(restore_time(None, 1 << 20), seconds(30));
        assert_eq!(restore_time(None, 64 << 30), seconds(30 + 4096));
        assert_eq!(restore_time(Some(seconds(5)), 64 << 30), seconds(5));
    }

    #[test]
    fn places_follow_the_user() {
        let mut user = Surroundings { uid: 1000, home: Some(PathBuf::from("/home/u")), ..Surroundings::default() };
        assert_eq!(user.store().unwrap(), PathBuf::from("/home/u/.local/state/hdcr"));
        assert_eq!(user.jobs(), PathBuf::from("/tmp/hdcr-1000/jobs"));
        user.state_home = Some(PathBuf::from("/s"));
        user.runtime_dir = Some(PathBuf::from("/run/user/1000"));
        assert_eq!(user.store().unwrap(), PathBuf::from("/s/hdcr"));
        assert_eq!(user.jobs(), PathBuf::from("/run/user/1000/hdcr/jobs"));
        user.root = true;
        assert_eq!(user.store().unwrap(), PathBuf::from("/var/lib/hdcr"));
        assert!(Surroundings::default().store().is_err());
    }
}
