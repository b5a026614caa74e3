//! The command line is sound, and teaches by examples.

use clap::CommandFactory as _;

use super::*;

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_teaches_by_examples() {
    for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let example = format!("  hdcr {}", command.get_name());
        let examples: Vec<&str> = help.lines().filter(|line| line.starts_with(&example)).collect();
        assert!(!examples.is_empty(), "{} has no example", command.get_name());
    }
}

/// Who reads a help should not have to guess how a time, a size or a pair is written.
#[test]
fn every_value_with_a_form_of_its_own_has_an_example() {
    let program = Cli::command();
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        for option in command.get_arguments().filter(|option| option.get_long().is_some()) {
            let name = option.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
            let has_form = ["TIME", "SIZE", "SHARE", "=", "WHAT"].iter().any(|form| name.contains(form));
            let help = option.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(!has_form || help.contains("such as"), "{} {option}: {help}", command.get_name());
        }
    }
}

/// clap breaks long lines where the terminal ends, so a paragraph is one line, and an example fits into 80 columns.
#[test]
fn texts_are_broken_by_the_terminal_alone() {
    let program = Cli::command();
    for command in std::iter::once(&program).chain(program.get_subcommands()) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines: Vec<&str> = help.lines().collect();
        for pair in lines.windows(2) {
            let text = |line: &&str| !line.is_empty() && !line.starts_with(' ') && !line.ends_with(':');
            assert!(!pair.iter().all(text), "{}: {pair:?}", command.get_name());
        }
        for line in lines.iter().filter(|line| line.starts_with(' ')) {
            assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
        }
    }
}

#[test]
fn the_examples_of_the_issue_parse() {
    for line in [
        "hdcr run --name n --every 30s --store d --keep 3 --restarts 5 --files a --files b -- sh -c true",
        "hdcr run --every auto -- true",
        "hdcr run --algorithm chain:longest=8 -- true",
        "hdcr run --on exit:75 --on signal:TERM,signal:any -- true",
        "hdcr checkpoint 4711 -o f --kill --timeout 30s",
        "hdcr checkpoint n --stop",
        "hdcr checkpoint n --snapshot precopy",
        "hdcr restore n@3 --detach --pidfile f --new-pids --map-path /a=/b --stdio null",
        "hdcr check 4711",
        "hdcr check n --wait 10s",
        "hdcr --json ps",
        "hdcr stop n",
        "hdcr list --json",
        "hdcr show n@1",
        "hdcr verify f",
        "hdcr rm n@1 n@2",
        "hdcr prune n --keep 2 --keep-for 2d --keep-size 1G --dry-run",
        "hdcr doctor -v",
        "hdcr completions bash",
        "hdcr job run --members 4 --every 5s --name n -- ./sim",
        "hdcr job run --launcher manual --listen 10.0.0.1:7000 -- ./sim",
        "hdcr job status n",
        "hdcr job list",
        "hdcr job checkpoint n",
        "hdcr job abort n",
        "hdcr __agent --credentials f --member 3 --join 10.0.0.1:7000",
    ] {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
    for line in [
        "hdcr",
        "hdcr run sh",
        "hdcr run --every 30 -- sh",
        "hdcr run --keep 0 -- sh",
        "hdcr prune",
        "hdcr checkpoint 1 --kill --stop",
        "hdcr restore a --map-path x",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}
