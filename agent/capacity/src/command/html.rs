//! `kubectl spillway html`: a result as one HTML file.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::subject::Subject;
use crate::{args::Global, command::Outcome, output, pages::render};

const EXAMPLES: &str = "Examples:
  kubectl spillway html optimize demand.csv --prices prices.yaml \\
      --dedicated-price our-h100 --serverless-price rented-h100 --machine 8 \\
      --owned 48 -f optimum.html
  kubectl spillway html history --database history.db --since 2026-10-01 \\
      --until 2026-11-01 -f usage.html
  kubectl spillway html simulate jobs.csv --gpus 64 --gpus-per-machine 8 \\
      --burst wait --wait 10m --dedicated-price 2.10 --serverless-price 6.30 \\
      -f simulation.html
  kubectl spillway html showback --database history.db --month 2026-10 \\
      --dedicated-price 0.40 --serverless-price 1.20 -f showback.html
  kubectl spillway html what-if demand.csv --gpus 48 --gpus-per-machine 8 \\
      --dedicated-price 2.80 --serverless-price 6.30 --remove 2 \\
      -f comparison.html
  kubectl spillway html report -f report.html

The file holds all that it needs: it can be mailed, printed, and opened without a network.";

/// Flags of `html`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Where to write the page; `-` is standard output.
    #[arg(short, long, global = true, value_name = "FILE", default_value = "-", value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// What to show.
    #[command(subcommand)]
    subject: Subject,
}

/// Writes a page.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let standard = args.file == Path::new("-");
    if standard && io::stdout().is_terminal() {
        bail!("a page is of no use on a terminal: say where to write it with -f FILE");
    }
    let html = render::file(&args.subject.page(global)?);
    if standard {
        let mut out = output::stdout();
        out.write_all(html.as_bytes()).and_then(|()| out.flush()).context("can't write the page")?;
    } else {
        write(&args.file, &html).with_context(|| format!("can't write {}", args.file.display()))?;
        eprintln!("wrote {}", crate::terminal::printable(&args.file.display().to_string()));
    }
    Ok(Outcome::Done)
}

/// Writes a file so that whoever opens it finds the old one or the new one, never a part of it.
fn write(path: &Path, html: &str) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        // A pipe or a device is written to, not replaced.
        return fs::write(path, html);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".spillway-")
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.write_all(html.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::write;

    #[test]
    fn a_page_replaces_another_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.html");
        write(&path, "first").unwrap();
        write(&path, "second").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        assert!(write(&folder.path().join("missing/page.html"), "x").is_err());
        assert!(write(folder.path(), "x").is_err());
    }
}
