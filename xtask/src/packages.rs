//! The Debian packages that tests and demo need: one list, installed when missing.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::shell::{Shell, say};

#[derive(Debug, Deserialize)]
struct List {
    packages: BTreeMap<String, String>,
}

/// Installs what is missing. Without root, or without apt, it says what is missing and goes on: trials skip by name.
pub(crate) fn install(shell: &Shell) -> Result<()> {
    let path = shell.root.join("xtask/packages.toml");
    let list: List = toml::from_str(&fs::read_to_string(&path)?).context("read packages.toml")?;
    install_named(shell, &list.packages.into_keys().collect::<Vec<_>>())
}

/// Installs those of these that are missing, likewise.
pub(crate) fn install_named(shell: &Shell, names: &[String]) -> Result<()> {
    let known = ["-W", "-f", "${Package} ${db:Status-Status}\n"];
    let Ok(installed) = shell.output("dpkg-query", &known) else {
        return say(&format!("no dpkg here to tell whether there is {}", names.join(" ")));
    };
    let missing = missing(names, &installed);
    if missing.is_empty() {
        return Ok(());
    }
    if shell.output("id", &["-u"])?.trim() != "0" {
        return say(&format!("not root, not installed: {}", missing.join(" ")));
    }
    say(&format!("installing {}", missing.join(" ")))?;
    let mut arguments =
        vec!["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "--yes", "--no-install-recommends"];
    arguments.extend(missing);
    // The lists of a fresh machine may be absent or old: they are fetched once, when the first try fails.
    if !shell.run("env", &arguments)? {
        ensure!(shell.run("apt-get", &["update", "-qq"])?, "apt-get update failed");
        ensure!(shell.run("env", &arguments)?, "apt-get install failed");
    }
    Ok(())
}

/// Whether all of these are there.
pub(crate) fn are_installed(shell: &Shell, names: &[String]) -> Result<bool> {
    let installed = shell.output("dpkg-query", &["-W", "-f", "${Package} ${db:Status-Status}\n"])?;
    Ok(missing(names, &installed).is_empty())
}

/// Whether packages can be installed by this user.
pub(crate) fn is_root(shell: &Shell) -> Result<bool> {
    Ok(shell.output("id", &["-u"])?.trim() == "0")
}

fn missing<'a>(names: &'a [String], installed: &str) -> Vec<&'a str> {
    let has = |name: &str| installed.lines().any(|line| line.split_once(' ') == Some((name, "installed")));
    names.iter().map(String::as_str).filter(|name| !has(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_installed_is_missing() {
        let list = ["perl", "vim", "xz-utils"].map(str::to_owned);
        let installed = "perl installed\nperl-base installed\nvim config-files\n";
        assert_eq!(missing(&list, installed), ["vim", "xz-utils"]);
    }
}
