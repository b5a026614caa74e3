//! `hdcr completions` and `hdcr manpage`: both are made from the command line's own description.

use std::fs;
use std::io;
use std::path::Path;

use clap::builder::Resettable;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::{Cli, CompletionsArgs, ManpageArgs};
use crate::failure::{Failure, Result};
use crate::output::Output;

/// The heading of the list that belongs to every command.
const STATUS: &str = "Exit status:";

/// Behind what the generators make for bash: names of jobs and checkpoints where a command takes them.
const NAMES_BASH: &str = include_str!("names.bash");
/// The same for zsh.
const NAMES_ZSH: &str = include_str!("names.zsh");
/// The same for fish.
const NAMES_FISH: &str = include_str!("names.fish");
/// Every key of the configuration file, with what holds when it is left out.
const CONFIGURATION: &str = include_str!("../config.toml");

pub(crate) fn completions(args: &CompletionsArgs) -> Result<u8> {
    Output::raw(script(args.shell).as_bytes())?;
    Ok(0)
}

fn script(shell: Shell) -> String {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut visible(&Cli::command()), "hdcr", &mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    match shell {
        Shell::Bash => format!("{text}\n{NAMES_BASH}"),
        // The generator's last lines take it into use: by then the functions have to be there.
        Shell::Zsh => {
            let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
            let rest: Vec<String> = rest.lines().map(named_zsh).collect();
            format!("{head}\n\n{NAMES_ZSH}{}\n", rest.join("\n"))
        }
        Shell::Fish => format!("{text}{NAMES_FISH}"),
        Shell::Elvish | Shell::PowerShell | _ => text.into_owned(),
    }
}

/// A line of the script for zsh: where it takes a job or an image, their names are proposed.
fn named_zsh(line: &str) -> String {
    const TAKES: [&str; 6] = ["'*::names --", "':image --", "'*::images --", "':target --", "':name --", "'::name --"];
    let (files, default) = (line.strip_suffix(":_files' \\"), line.strip_suffix(":_default' \\"));
    match files.or(default).filter(|line| TAKES.iter().any(|begin| line.starts_with(begin))) {
        Some(line) => format!("{line}:_hdcr_names' \\"),
        None => line.to_owned(),
    }
}

/// The command line without what is a part of hdcr itself.
fn visible(command: &Command) -> Command {
    let name: &'static str = command.get_name().to_owned().leak();
    let mut shown = Command::new(name);
    shown = shown.args(command.get_arguments().filter(|option| !option.is_hide_set()).cloned());
    shown = shown.subcommands(command.get_subcommands().filter(|command| !command.is_hide_set()).map(visible));
    shown = shown.disable_help_subcommand(true);
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    match command.get_version() {
        Some(_) => shown.version(env!("CARGO_PKG_VERSION")),
        None => shown,
    }
}

pub(crate) fn manpage(args: &ManpageArgs) -> Result<u8> {
    let directory = &args.directory;
    let doing = || Failure::system::<io::Error>(format!("writing manual pages into {}", directory.display()));
    fs::create_dir_all(directory).map_err(doing())?;
    for (name, page) in pages().map_err(doing())? {
        fs::write(Path::new(directory).join(name), page).map_err(doing())?;
    }
    Ok(0)
}

/// `hdcr(1)` and a page for each command, by the names of their files.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut program = Cli::command();
    program.build();
    let commands: Vec<Command> = program.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let status = program.get_after_help().map(ToString::to_string).unwrap_or_default();
    let names: Vec<&str> = commands.iter().filter_map(Command::get_display_name).collect();
    let mut pages = vec![page(program.clone(), "", &names)?];
    for command in &commands {
        pages.push(page(command.clone(), &list(&status, STATUS), &["hdcr"])?);
        let above = command.get_display_name().unwrap_or_default();
        for part in command.get_subcommands().filter(|part| !part.is_hide_set() && part.get_name() != "help") {
            pages.push(page(part.clone(), &list(&status, STATUS), &["hdcr", above])?);
        }
    }
    Ok(pages)
}

/// The lines of a list below its heading, with it.
fn list(text: &str, heading: &str) -> String {
    let lines = text.lines().skip_while(|line| *line != heading);
    let block: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
    block.join("\n")
}

fn page(command: Command, more: &str, see: &[&str]) -> io::Result<(String, Vec<u8>)> {
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string().replace("Usage: ", "");
    let variables = environment(&command);
    let has_commands = command.get_subcommands().any(|command| !command.is_hide_set());
    // The generator would set examples as paragraphs.
    let command = command.after_help(Resettable::Reset).version(env!("CARGO_PKG_VERSION"));
    let source = concat!("hdcr ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).source(source).manual("Checkpoint and rollback");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.extend(format!(".SH SYNOPSIS\n.nf\n{}\n.fi\n", escaped(&usage)).bytes());
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend(sections(&format!("{after}\n\n{more}\n\n{variables}")).bytes());
    if more.is_empty() {
        let head =
            ".SH CONFIGURATION\n.PP\nEvery key may be left out; these are the values that hold then, or examples.\n";
        page.extend(format!("{head}.nf\n{}\n.fi\n", escaped(CONFIGURATION.trim_end())).bytes());
    }
    let see: Vec<String> = see.iter().map(|name| format!(".BR {} (1)", escaped(name))).collect();
    page.extend(format!(".SH \"SEE ALSO\"\n{}\n", see.join("\n")).bytes());
    Ok((man.get_filename(), page))
}

/// The variables that options of a command are read from, as a list; of the whole program also those of its commands.
fn environment(command: &Command) -> String {
    let mut lines: Vec<String> = Vec::new();
    for command in std::iter::once(command).chain(command.get_subcommands()) {
        for option in command.get_arguments() {
            let (Some(variable), Some(long)) = (option.get_env(), option.get_long()) else { continue };
            let line = format!("  {:<16}  --{long}", variable.display().to_string());
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    if lines.is_empty() { String::new() } else { format!("Environment:\n{}", lines.join("\n")) }
}

/// Text behind the options of a help as sections of a page: lists keep their lines, all else is notes.
fn sections(text: &str) -> String {
    let (mut notes, mut lists) = (Vec::new(), Vec::new());
    for block in text.split("\n\n").map(|block| block.trim_matches('\n')).filter(|block| !block.is_empty()) {
        match block.split_once('\n') {
            Some((heading, lines)) if heading.ends_with(':') => {
                let heading = heading.trim_end_matches(':').to_uppercase();
                lists.push(format!(".SH \"{heading}\"\n.nf\n{}\n.fi\n", escaped(lines)));
            }
            _ => notes.push(format!(".PP\n{}\n", escaped(block))),
        }
    }
    let head = if notes.is_empty() { "" } else { ".SH NOTES\n" };
    format!("{head}{}{}", notes.concat(), lists.concat())
}

/// Text that means itself to roff.
fn escaped(text: &str) -> String {
    let line = |line: &str| {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_all_of_its_options_and_the_exit_statuses() {
        let pages = pages().unwrap();
        let text = |name: &str| {
            let page = pages.iter().find(|(file, _)| file == name).unwrap_or_else(|| panic!("no page {name}"));
            String::from_utf8(page.1.clone()).unwrap()
        };
        let mut program = Cli::command();
        program.build();
        let visible: Vec<&Command> = program.get_subcommands().filter(|command| !command.is_hide_set()).collect();
        let parts = |command: &&Command| command.get_subcommands().filter(|part| part.get_name() != "help").count();
        let parts: usize = visible.iter().map(parts).sum();
        assert_eq!(pages.len(), visible.len() + parts + 1, "none of what is a part of hdcr itself");
        for command in visible {
            let page = text(&format!("hdcr-{}.1", command.get_name()));
            for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
                let long = option.get_long().map(|long| format!("\\-\\-{}", long.replace('-', "\\-")));
                assert!(long.is_none_or(|long| page.contains(&long)), "{}: {option}", command.get_name());
            }
            assert!(page.contains(".SH \"EXIT STATUS\"\n.nf\n  0   done\n"), "{page}");
            assert!(page.contains(".SH \"EXAMPLES\"\n.nf\n  hdcr "), "{page}");
        }
        assert!(text("hdcr-run.1").contains("hdcr run [OPTIONS] \\-\\- <CMD>..."));
        assert!(text("hdcr-run.1").contains("HDCR_EVERY") && text("hdcr.1").contains("keep\\-for"));
        assert!(text("hdcr.1").contains(".BR hdcr\\-restore (1)"));
    }

    #[test]
    fn text_means_itself() {
        assert_eq!(escaped(".a\n-b \\n\n'c"), "\\&.a\n\\-b \\en\n\\&'c");
        assert_eq!(
            sections("A note.\n\nExamples:\n  a  b\n  c"),
            ".SH NOTES\n.PP\nA note.\n.SH \"EXAMPLES\"\n.nf\n  a  b\n  c\n.fi\n"
        );
    }

    #[test]
    fn every_shell_gets_its_completions() {
        use clap::ValueEnum as _;
        for shell in Shell::value_variants() {
            let mut bytes = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "hdcr", &mut bytes);
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains("checkpoint") && text.contains("dry-run"), "{shell}");
            let text = script(*shell);
            assert!(text.contains("checkpoint") && text.contains("dry-run"), "{shell}");
            for inside in ["__worker", "__probe", "__program", "entered", "apart"] {
                assert!(!text.contains(inside), "{shell}: {inside}");
            }
        }
        assert_eq!(script(Shell::Zsh).matches(":_hdcr_names'").count(), 11);
    }

    /// What users read of settings is all that there is, and can be copied.
    #[test]
    fn every_variable_and_every_key_is_told() {
        let readme = include_str!("../../../../README.md");
        let mut program = Cli::command();
        program.build();
        for line in environment(&program).lines().skip(1) {
            let variable = line.split_whitespace().next().unwrap();
            assert!(readme.contains(&format!("`{variable}`")), "{variable}");
        }
        let indented: Vec<String> = CONFIGURATION.lines().map(|line| format!("    {line}\n")).collect();
        assert!(readme.contains(&indented.concat()), "{indented:?}");
        toml::from_str::<crate::settings::Config>(CONFIGURATION).unwrap();
        let keys = |fields: &str| fields.matches("pub(crate) ").count();
        let settings = include_str!("../settings.rs");
        let structures = settings.split("deny_unknown_fields").skip(1).filter_map(|rest| rest.split("\n}").next());
        // The tables themselves, and the word before each structure.
        let known: usize = structures.map(|structure| keys(structure) - 1).sum();
        let told = CONFIGURATION.lines().filter(|line| line.contains(" = ")).count();
        assert_eq!(told, known - 4, "a key of the configuration is not told");
    }
}
