//! `kubectl spillway man`: manual pages, made of the command line itself.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::{args, command::Outcome, output};

/// Flags of `man`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  # One page, for `man ./kubectl-spillway.1`
  kubectl spillway man > kubectl-spillway.1

  # Install all of them for this user
  kubectl spillway man --directory ~/.local/share/man/man1")]
pub struct Args {
    /// Write a page for each command to this folder, instead of one to standard output.
    #[arg(long, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath)]
    directory: Option<PathBuf>,
}

/// Prints the first manual page, or writes all of them, in roff.
pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let mut command = args::Args::command();
    command.build();
    match &args.directory {
        None => {
            let mut out = output::stdout();
            out.write_all(&page(&command, command.get_name())?)?;
            out.flush()?;
        }
        Some(folder) => {
            fs::create_dir_all(folder)
                .with_context(|| format!("can't make the folder {}", folder.display()))?;
            for (name, page) in pages(&command, command.get_name())? {
                let path = folder.join(format!("{name}.1"));
                let write = || File::create(&path)?.write_all(&page);
                write().with_context(|| format!("can't write {}", path.display()))?;
            }
        }
    }
    Ok(Outcome::Done)
}

/// The pages of `command` and all below it, with their names.
fn pages(command: &Command, name: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut all = vec![(name.to_owned(), page(command, name)?)];
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        all.extend(pages(sub, &format!("{name}-{}", sub.get_name()))?);
    }
    Ok(all)
}

fn page(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    let mut roff = Vec::new();
    Man::new(command.clone())
        .title(name)
        .section("1")
        .source(concat!("kubectl-spillway ", env!("CARGO_PKG_VERSION")))
        .render(&mut roff)?;
    Ok(roff)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::pages;
    use crate::args::Args;

    #[test]
    fn each_command_has_a_page_with_its_examples() {
        let mut command = Args::command();
        command.build();
        let pages = pages(&command, command.get_name()).unwrap();
        let (_, man) = pages.iter().find(|(name, _)| name == "kubectl-spillway-man").unwrap();
        let text = String::from_utf8(man.clone()).unwrap();
        assert!(text.contains(".SH EXTRA") && text.contains("man \\-\\-directory"), "{text}");
        assert!(pages.iter().all(|(name, _)| !name.contains("__")));
    }
}
