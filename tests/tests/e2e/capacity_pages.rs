//! Pages of `kubectl spillway` in a real browser: they draw, nothing in them runs that shouldn't, and nothing is asked of a network.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use spillway_tests::{
    browser::{self, Look, Visit},
    cluster::current_binaries,
    repository, target,
};

use super::Alone;

pub(crate) const ALONE: &[Alone] = &[
    ("capacity_pages::a_browser_that_is_provoked_tells", a_browser_that_is_provoked_tells),
    ("capacity_pages::pages_are_drawn_everywhere", pages_are_drawn_everywhere),
    ("capacity_pages::hostile_names_are_text", hostile_names_are_text),
    ("capacity_pages::a_live_page_is_made_anew", a_live_page_is_made_anew),
    ("capacity_pages::an_overview_leads_to_its_pages", an_overview_leads_to_its_pages),
    ("capacity_pages::the_library_is_its_package_s", the_library_is_its_package_s),
];

/// What would run, were it markup.
const HOSTILE: &str = "<img src=x onerror=document.title='ran'>";

fn examples() -> PathBuf {
    repository().join("agent/capacity/examples")
}

fn program() -> anyhow::Result<Command> {
    let mut command = Command::new(current_binaries()?.join("kubectl-spillway"));
    command.current_dir(examples()).stdin(Stdio::null());
    Ok(command)
}

fn write_page(arguments: &[&str], file: &Path) -> anyhow::Result<()> {
    let output = program()?.arg("html").args(arguments).arg("-f").arg(file).output()?;
    ensure!(output.status.success(), "html {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn url(file: &Path) -> String {
    format!("file://{}", file.display())
}

/// Nothing was said, asked or run, and so many plots were drawn.
fn quiet(visit: &Visit, plots: usize) -> anyhow::Result<()> {
    ensure!(visit.console.is_empty(), "the page said {:?}", visit.console);
    ensure!(visit.asked.is_empty(), "the page asked for {:?}", visit.asked);
    ensure!(!visit.dom.contains("<title>ran"), "a name ran");
    ensure!(!visit.dom.contains("data-failed"), "a plot was not drawn");
    let drawn = format!("data-drawn=\"{plots}\"");
    ensure!(visit.dom.contains(&drawn), "{drawn} is missing");
    let lines = visit.dom.matches("<path").count();
    ensure!(lines > 10 * plots, "{lines} lines for {plots} plots");
    Ok(())
}

const PAGES: &[(&str, &[&str], usize)] = &[
    (
        "simulate",
        &[
            "simulate",
            "jobs.csv",
            "--gpus",
            "64",
            "--gpus-per-machine",
            "8",
            "--dedicated-price",
            "2.10",
            "--serverless-price",
            "6.30",
        ],
        4,
    ),
    (
        "showback",
        &[
            "showback",
            "--database",
            "history.db",
            "--month",
            "2026-10",
            "--dedicated-price",
            "0.40",
            "--serverless-price",
            "1.20",
        ],
        2,
    ),
    (
        "history",
        &["history", "--database", "history.db", "--since", "2026-10-01", "--until", "2026-11-01"],
        3,
    ),
    ("optimize", &["optimize", "demand.csv", "--ratio", "3", "--machine", "8", "--owned", "48"], 4),
    (
        "what-if-jobs",
        &[
            "what-if",
            "jobs.csv",
            "--gpus",
            "16",
            "--gpus-per-machine",
            "8",
            "--burst",
            "all-wait",
            "--ratio",
            "3",
            "--add",
            "2",
        ],
        2,
    ),
    ("what-if", &["what-if", "demand.csv", "--gpus", "48", "--ratio", "3", "--grow", "20%"], 2),
];

/// What the other tests look for is there to be found.
fn a_browser_that_is_provoked_tells() -> anyhow::Result<()> {
    browser::ensure()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("provoked.html");
    let page = format!(
        "<!doctype html><title>quiet</title>{HOSTILE}<img src='http://192.0.2.1/'><script>console.error('said')</script>"
    );
    fs::write(&file, page)?;
    let visit = browser::visit(&url(&file), Look::default())?;
    ensure!(visit.dom.contains("<title>ran"), "nothing ran in {}", visit.dom);
    ensure!(visit.console.iter().any(|line| line.contains("said")), "console: {:?}", visit.console);
    ensure!(visit.asked == ["http://192.0.2.1/"], "asked: {:?}", visit.asked);
    Ok(())
}

fn pages_are_drawn_everywhere() -> anyhow::Result<()> {
    browser::ensure()?;
    // Left to be looked at.
    let folder = target().join("pages");
    fs::create_dir_all(&folder)?;
    for (name, arguments, plots) in PAGES {
        let file = folder.join(name).with_extension("html");
        write_page(arguments, &file)?;
        let wide = browser::visit(&url(&file), Look::default())?;
        quiet(&wide, *plots).with_context(|| format!("{name} on a desktop"))?;
        ensure!(wide.dom.matches("<table").count() >= *plots, "{name}: a plot without a table");
        let dark = browser::visit(&url(&file), Look { dark: true, ..Look::default() })?;
        quiet(&dark, *plots).with_context(|| format!("{name} in the dark"))?;
        ensure!(ink(&wide.dom)? != ink(&dark.dom)?, "{name} is drawn alike in light and dark");
        fits_a_phone(name, &file, *plots)?;
        for (look, suffix) in [
            (Look::default(), "light"),
            (Look { dark: true, ..Look::default() }, "dark"),
            (Look { width: 390, ..Look::default() }, "phone"),
        ] {
            browser::photograph(&url(&file), look, 3000, &folder.join(format!("{name}-{suffix}.png")))?;
        }
        let paper = folder.join(name).with_extension("pdf");
        browser::print(&url(&file), &paper)?;
        let paper = fs::read(&paper)?;
        ensure!(
            paper.starts_with(b"%PDF") && paper.len() > 30_000,
            "{name} leaves {} bytes on paper",
            paper.len()
        );
    }
    // One that has lines, areas, steps and bars of several parts.
    let html = fs::read_to_string(folder.join("simulate.html"))?;
    for (sees, suffix) in [("grayscale(1)", "grey"), ("url(#deuteranopia)", "deuteranopia")] {
        let copy = folder.join(format!("simulate-{suffix}.html"));
        fs::write(&copy, seen_through(&html, sees))?;
        browser::photograph(&url(&copy), Look::default(), 3000, &copy.with_extension("png"))?;
        fs::remove_file(&copy)?;
    }
    Ok(())
}

/// A copy of a page as others see it, to be looked at. Its policy would forbid the filter.
fn seen_through(html: &str, filter: &str) -> String {
    // Viénot, Brettel and Mollon, 1999, in linear light.
    let filters = "<svg width='0' height='0' style='position:absolute'><filter id='deuteranopia'><feColorMatrix values='\
        0.29275 0.70725 0 0 0 0.29275 0.70725 0 0 0 -0.02234 0.02234 1 0 0 0 0 0 1 0'/></filter></svg>";
    html.replace("http-equiv=\"Content-Security-Policy\"", "name=\"was\"")
        .replace("</head>", &format!("<style>body{{filter:{filter}}}</style></head>"))
        .replace("<footer>", &format!("{filters}<footer>"))
}

/// The colour of the first text that is drawn.
fn ink(dom: &str) -> anyhow::Result<&str> {
    let text = dom.split("<text").nth(1).context("no text is drawn")?;
    text.split("fill=\"").nth(1).and_then(|rest| rest.split('"').next()).context("text has no colour")
}

/// Nothing is wider than the screen. The page's policy forbids to ask it: a copy without one is asked.
fn fits_a_phone(name: &str, file: &Path, plots: usize) -> anyhow::Result<()> {
    let look = Look { width: 390, ..Look::default() };
    quiet(&browser::visit(&url(file), look)?, plots).with_context(|| format!("{name} on a phone"))?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("copy.html");
    let ask = "<script>document.documentElement.dataset.beyond = document.documentElement.scrollWidth - document.documentElement.clientWidth</script></body>\n</html>";
    let html = fs::read_to_string(file)?.replace("http-equiv=\"Content-Security-Policy\"", "name=\"was\"");
    fs::write(&copy, html.replace("</body>\n</html>", ask))?;
    let dom = browser::visit(&url(&copy), look)?.dom;
    ensure!(
        dom.contains("data-beyond=\"0\""),
        "{name} is wider than a phone: {:?}",
        dom.split("data-beyond").nth(1).map(|rest| &rest[..8])
    );
    Ok(())
}

fn hostile_names_are_text() -> anyhow::Result<()> {
    browser::ensure()?;
    let folder = tempfile::tempdir()?;
    let trace = folder.path().join(format!("{HOSTILE}.csv"));
    fs::copy(examples().join("demand.csv"), &trace)?;
    let file = folder.path().join("page.html");
    write_page(&["optimize", &trace.display().to_string(), "--ratio", "3"], &file)?;
    let html = fs::read_to_string(&file)?;
    ensure!(html.contains("&lt;img src=x onerror="), "the trace's name is not on the page");
    quiet(&browser::visit(&url(&file), Look::default())?, 4)
}

/// A server that ends with the value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_live_page_is_made_anew() -> anyhow::Result<()> {
    browser::ensure()?;
    let folder = tempfile::tempdir()?;
    let trace = folder.path().join("demand.csv");
    fs::copy(examples().join("demand.csv"), &trace)?;
    let arguments = ["serve", "--address", "127.0.0.1:0", "--refresh", "1", "optimize", "--ratio", "3"];
    let child = program()?.args(arguments).arg(&trace).stdout(Stdio::piped()).spawn()?;
    let mut server = Server(child);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("no output")?).read_line(&mut line)?;
    let address = line.split_whitespace().next().context("no address")?.to_owned();
    let look = Look { for_ms: 5000, ..Look::default() };
    let visit = browser::visit(&address, look)?;
    ensure!(visit.console.is_empty(), "the page said {:?}", visit.console);
    ensure!(visit.asked.iter().all(|asked| asked.starts_with(&address)), "asked: {:?}", visit.asked);
    ensure!(
        visit.asked.iter().any(|asked| asked.ends_with("?part=main")),
        "it was not made anew: {:?}",
        visit.asked
    );
    ensure!(
        visit.dom.contains("Live: every 1 s") && visit.dom.contains("data-drawn=\"4\""),
        "it is not drawn"
    );
    fs::remove_file(&trace)?;
    // The page that was made last is good for a second.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let gone = browser::visit(&address, look)?;
    ensure!(gone.dom.contains("There is nothing to show"), "a missing trace is not told");
    let status = |host: &str| -> anyhow::Result<String> {
        let output = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", host, &address])
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    ensure!(status("Host: evil.example")? == "421", "another name is served");
    for refused in ["0.0.0.0:0", "192.0.2.1:8001", "[::]:0"] {
        let output = program()?.args(["serve", "--address", refused, "optimize", "demand.csv"]).output()?;
        ensure!(!output.status.success(), "it listens on {refused}");
    }
    let ended = Command::new("kill").args(["-INT", &server.0.id().to_string()]).status()?;
    ensure!(ended.success() && server.0.wait()?.success(), "an interrupted server fails");
    Ok(())
}

/// Without a cluster: the page of that says so, and the others are there.
fn an_overview_leads_to_its_pages() -> anyhow::Result<()> {
    browser::ensure()?;
    let arguments = ["serve", "--address", "127.0.0.1:0", "--database", "history.db"];
    let nowhere = ["--kubeconfig", "/dev/null"];
    let child = program()?.args(arguments).args(nowhere).stdout(Stdio::piped()).spawn()?;
    let mut server = Server(child);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("no output")?).read_line(&mut line)?;
    let address = line.split_whitespace().next().context("no address")?.to_owned();
    let visit = browser::visit(&address, Look::default())?;
    ensure!(visit.console.is_empty(), "the page said {:?}", visit.console);
    for part in
        ["<h1>Overview</h1>", "href=\"/report\"", "href=\"/history\"", "href=\"/showback\"", "aria-current"]
    {
        ensure!(visit.dom.contains(part), "no {part} in {}", visit.dom);
    }
    let linked = browser::visit(&format!("{address}history"), Look::default())?;
    ensure!(linked.dom.contains("Usage over time from history.db"), "this is no history: {}", linked.dom);
    let refused = browser::visit(&format!("{address}report"), Look::default())?;
    ensure!(refused.dom.contains("There is nothing to show"), "a cluster that is none is not told");
    let both = ["serve", "--database", "history.db", "report"];
    ensure!(!program()?.args(both).output()?.status.success(), "flags of the overview are ignored");
    Ok(())
}

/// The package and what npm's registry says of it.
const PACKAGE: &str = "echarts@6.1.0";
const INTEGRITY: &str =
    "sha512-q0yaFPggC9FUdsWH4blavRWFmxdrIodbkoKNAjJudAI6CA9gNPxHtV2RcZNEepZVlk4yvBYkOkbk6HIVpIyHZA==";

/// The charting library in the repository is what its authors published, byte for byte.
fn the_library_is_its_package_s() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let output = Command::new("npm")
        .args(["pack", "--json", "--ignore-scripts", PACKAGE])
        .current_dir(folder.path())
        .output()
        .context("can't run npm: install Debian's package npm")?;
    ensure!(output.status.success(), "npm pack {PACKAGE}: {}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).context("npm says no JSON")?;
    ensure!(told[0]["integrity"] == INTEGRITY, "{PACKAGE} is {} now", told[0]["integrity"]);
    let archive = folder.path().join(told[0]["filename"].as_str().context("npm names no file")?);
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder.path()).status()?;
    if !unpacked.success() {
        bail!("can't unpack {}", archive.display());
    }
    for (theirs, ours) in [
        ("dist/echarts.min.js", "echarts.min.js"),
        ("LICENSE", "LICENSE"),
        ("NOTICE", "NOTICE"),
        ("licenses/LICENSE-d3", "LICENSE-d3"),
    ] {
        let published = fs::read(folder.path().join("package").join(theirs))?;
        let committed = fs::read(repository().join("agent/capacity/src/pages/echarts").join(ours))?;
        ensure!(published == committed, "{ours} is not the package's");
    }
    Ok(())
}
