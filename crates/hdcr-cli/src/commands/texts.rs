//! `hdcr completions` and `hdcr manpage`: both are made from the command line's own description.

use std::fs;
use std::io;
use std::path::Path;

use clap::builder::Resettable;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::cli::{Cli, CompletionsArgs, ManpageArgs};
use crate::failure::{Failure, Result};
use crate::output::Output;

/// The heading of the list that belongs to every command.
const STATUS: &str = "Exit status:";

pub(crate) fn completions(args: &CompletionsArgs) -> Result<u8> {
    let mut bytes = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hdcr", &mut bytes);
    Output::raw(&bytes)?;
    Ok(0)
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
    // The generator would set examples as paragraphs.
    let command = command.after_help(Resettable::Reset).version(env!("CARGO_PKG_VERSION"));
    let source = concat!("hdcr ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).source(source).manual("Checkpoint and rollback");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if more.is_empty() {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend(sections(&format!("{after}\n\n{more}")).bytes());
    let see: Vec<String> = see.iter().map(|name| format!(".BR {} (1)", escaped(name))).collect();
    page.extend(format!(".SH \"SEE ALSO\"\n{}\n", see.join("\n")).bytes());
    Ok((man.get_filename(), page))
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
        assert_eq!(pages.len(), visible.len() + 1, "none of what is a part of hdcr itself");
        for command in visible {
            let page = text(&format!("hdcr-{}.1", command.get_name()));
            for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
                let long = option.get_long().map(|long| format!("\\-\\-{}", long.replace('-', "\\-")));
                assert!(long.is_none_or(|long| page.contains(&long)), "{}: {option}", command.get_name());
            }
            assert!(page.contains(".SH \"EXIT STATUS\"\n.nf\n  0   done\n"), "{page}");
            assert!(page.contains(".SH \"EXAMPLES\"\n.nf\n  hdcr "), "{page}");
        }
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
        for shell in clap_complete::Shell::value_variants() {
            let mut bytes = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "hdcr", &mut bytes);
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains("checkpoint") && text.contains("dry-run"), "{shell}");
        }
    }
}
