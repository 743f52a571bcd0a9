//! A trace: how it is read is said by the first byte, where it is cut by the second, and the rest is the file.

use std::io::{Cursor, Read};

use kubectl_spillway::{
    job::Job,
    trace::{Args, Counted, Error, Kind, Preset, Trace, Warnings},
};

/// More than any message has to say.
const MESSAGE: usize = 20_000;

/// What was read, without the lines on which it stands.
#[derive(Debug, PartialEq)]
enum Found {
    Jobs(Vec<Job>),
    Demand(Vec<(f64, f64)>),
}

/// Reads it whole, compressed, and cut in two.
pub fn run(bytes: &[u8]) {
    let [options, cut, file @ ..] = bytes else { return };
    let preset = [
        None,
        Some(Preset::Jobs),
        Some(Preset::Demand),
        Some(Preset::Helios),
        Some(Preset::Openb),
        Some(Preset::Sacct),
        Some(Preset::Prometheus),
        Some(Preset::Record),
    ][usize::from(options & 7)];
    let no_header = options & 8 != 0;
    let columns = ["submit=1,duration=2,gpus=3", "at=1,gpus=2"][usize::from(options & 1)];
    let args = Args {
        preset: if no_header { None } else { preset },
        no_header,
        columns: no_header.then(|| columns.parse().expect("a mapping")),
        strict: options & 16 != 0,
        demand: if options & 32 == 0 { Counted::All } else { Counted::Running },
        ..Args::default()
    };
    let whole = read(&args, &[file]);
    match &whole {
        Ok((found, warnings)) => {
            check(found);
            assert!(!args.strict || warnings.is_empty(), "{warnings:?}");
            for warning in warnings {
                assert!(warning.count > 0 && warning.line > 0 && warning.to_string().len() < MESSAGE);
            }
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.is_empty() && message.len() < MESSAGE, "{message}");
        }
    }
    // What is a compressed file may be one again.
    if !matches!(file, [0x1f, 0x8b, ..] | [0x28 | 0x50..=0x5f, ..]) {
        let packed = ruzstd::encoding::compress_to_vec(file, ruzstd::encoding::CompressionLevel::Fastest);
        same(&whole, &read(&args, &[&packed]), file);
    }
    if let (Ok((_, warnings)), Some((first, second))) = (&whole, parts(file, *cut, no_header)) {
        let in_order = warnings.count(Kind::OutOfOrder) == 0 && warnings.count(Kind::Duplicate) == 0;
        if in_order {
            let split = read(&args, &[&first, &second]);
            assert!(split.is_ok(), "{:?}", split.err());
            same(&whole, &split, file);
        }
    }
}

type Outcome = Result<(Found, Warnings), Error>;

fn same(one: &Outcome, other: &Outcome, file: &[u8]) {
    let found = |outcome: &Outcome| outcome.as_ref().ok().map(|(found, _)| format!("{found:?}"));
    assert_eq!(found(one), found(other), "{:?}", String::from_utf8_lossy(file));
}

fn read(args: &Args, files: &[&[u8]]) -> Outcome {
    let files = files.iter().enumerate().map(|(number, bytes)| {
        let bytes: Box<dyn Read + Send> = Box::new(Cursor::new(bytes.to_vec()));
        (number.to_string(), bytes)
    });
    match args.open_bytes(files.collect())? {
        Trace::Jobs(mut jobs) => {
            let found = jobs.by_ref().collect::<Result<Vec<Job>, Error>>()?;
            let found = found.into_iter().map(|job| Job { line: 0, ..job }).collect();
            Ok((Found::Jobs(found), jobs.warnings()))
        }
        Trace::Demand(mut samples) => {
            let found = samples
                .by_ref()
                .map(|sample| sample.map(|sample| (sample.at_s, sample.gpus)))
                .collect::<Result<_, Error>>()?;
            Ok((Found::Demand(found), samples.warnings()))
        }
    }
}

fn check(found: &Found) {
    match found {
        Found::Jobs(jobs) => {
            assert!(!jobs.is_empty());
            assert!(jobs.is_sorted_by(|a, b| a.submit_s <= b.submit_s));
            for job in jobs {
                assert!(
                    job.submit_s.is_finite() && job.duration_s.is_finite() && job.duration_s >= 0.0,
                    "{job:?}"
                );
                assert!(job.pods <= 1_000_000 && job.request.gpus <= 1_000_000, "{job:?}");
                assert!((1..=1000).contains(&job.request.gpu_milli), "{job:?}");
                assert!(job.deadline_s.is_none_or(f64::is_finite), "{job:?}");
            }
        }
        Found::Demand(samples) => {
            assert!(!samples.is_empty());
            assert!(samples.is_sorted_by(|a, b| a.0 < b.0), "{samples:?}");
            assert!(samples.iter().all(|(at, gpus)| at.is_finite() && gpus.is_finite() && *gpus >= 0.0));
        }
    }
}

/// Both parts of a file, each with the header. Nothing where a line may not be a row.
fn parts(file: &[u8], cut: u8, no_header: bool) -> Option<(Vec<u8>, Vec<u8>)> {
    let begins = |with: &[u8]| file.starts_with(with);
    if begins(b"\xef\xbb\xbf")
        || begins(b"\xff\xfe")
        || begins(b"\xfe\xff")
        || file.iter().any(|byte| matches!(byte, b'"' | b'\r' | b'#'))
    {
        return None;
    }
    // A line above the header that tells the separator.
    if file.windows(4).any(|word| word == b"sep=") {
        return None;
    }
    let mut lines = file.split_inclusive(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let header = if no_header { &[][..] } else { lines.next()? };
    let rows: Vec<&[u8]> = lines.collect();
    let at = usize::from(cut) % (rows.len() + 1);
    // Without a header, what stands first is looked at to know the columns.
    if !header.ends_with(b"\n") && !no_header || no_header && (at == 0 || at == rows.len()) {
        return None;
    }
    let plain = |row: &[u8]| {
        row[0].is_ascii_digit()
            && row.iter().all(|byte| !byte.is_ascii_control() || matches!(byte, b'\t' | b'\n'))
    };
    if no_header && rows.iter().any(|row| columns(row) != columns(rows[0]) || !plain(row)) {
        return None;
    }
    let part = |rows: &[&[u8]]| [header, &rows.concat()].concat();
    Some((part(&rows[..at]), part(&rows[at..])))
}

/// How often each separator is there.
fn columns(row: &[u8]) -> [usize; 4] {
    let mut counts = [0; 4];
    for byte in row {
        if let Some(which) = b",\t;|".iter().position(|separator| separator == byte) {
            counts[which] += 1;
        }
    }
    counts
}
