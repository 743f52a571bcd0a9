use std::{
    fmt::Write as _,
    io::{Cursor, Read, Write as _},
};

use flate2::{Compression, write::GzEncoder};

use super::{Args, Error, Kind, Trace, Warnings};
use crate::job::{Demand, Job};

mod bad;
mod presets;
mod split;

fn files(files: &[&[u8]]) -> Vec<(String, Box<dyn Read + Send>)> {
    let named = files.iter().enumerate().map(|(index, bytes)| {
        let bytes: Box<dyn Read + Send> = Box::new(Cursor::new(bytes.to_vec()));
        (format!("{index}.csv"), bytes)
    });
    named.collect()
}

fn open(args: &Args, bytes: &[&[u8]]) -> Result<Trace, Error> {
    args.open_bytes(files(bytes))
}

/// Jobs and warnings, or how reading ended.
fn jobs_of(args: &Args, bytes: &[&[u8]]) -> Result<(Vec<Job>, Warnings), String> {
    let text = |error: Error| error.to_string();
    let mut jobs = open(args, bytes).map_err(text)?.jobs().map_err(text)?;
    let all = jobs.by_ref().collect::<Result<_, _>>().map_err(text)?;
    Ok((all, jobs.warnings()))
}

fn jobs(text: &str) -> (Vec<Job>, Warnings) {
    jobs_of(&Args::default(), &[text.as_bytes()]).unwrap()
}

/// Times, GPUs and warnings, or how reading ended.
fn demand_of(args: &Args, bytes: &[&[u8]]) -> Result<(Vec<(f64, f64)>, Warnings), String> {
    let text = |error: Error| error.to_string();
    let Trace::Demand(mut samples) = open(args, bytes).map_err(text)? else {
        return Err("jobs".to_owned());
    };
    let all: Vec<Demand> = samples.by_ref().collect::<Result<_, _>>().map_err(text)?;
    Ok((all.iter().map(|sample| (sample.at_s, sample.gpus)).collect(), samples.warnings()))
}

fn demand(texts: &[&str]) -> (Vec<(f64, f64)>, Warnings) {
    let bytes: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
    demand_of(&Args::default(), &bytes).unwrap()
}

fn error(text: &str) -> String {
    let read = |trace: Trace| match trace {
        Trace::Jobs(mut jobs) => jobs.find_map(Result::err),
        Trace::Demand(mut samples) => samples.find_map(Result::err),
    };
    match open(&Args::default(), &[text.as_bytes()]) {
        Ok(trace) => read(trace).expect("no error").to_string(),
        Err(error) => error.to_string(),
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &str) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn jobs_come_by_submit_time_with_their_lines() {
    let (jobs, warnings) = jobs("submit,duration,gpus,owner\n10,5,2,b\n\n3,7,1,a\n12,1,4,b\n");
    let seen: Vec<_> = jobs.iter().map(|job| (job.line, job.submit_s, &*job.owner)).collect();
    assert_eq!(seen, [(4, 3.0, "a"), (2, 10.0, "b"), (5, 12.0, "b")]);
    assert_eq!(warnings.count(Kind::OutOfOrder), 1);
}

#[test]
fn lines_are_counted_whatever_ends_them() {
    let quoted = "submit,duration,owner\n1,1,\"a\nb\"\n2,1,x\n";
    let seen = |text: &str| jobs(text).0.iter().map(|job| job.line).collect::<Vec<_>>();
    assert_eq!(seen(quoted), [2, 4]);
    assert_eq!(seen("submit,duration\r\n1,1\r\n\r\n2,1"), [2, 4]);
    assert_eq!(seen("\u{feff}# MIT, by somebody\n\n  \nsubmit,duration\n1,1\n   \n2,1"), [5, 7]);
    // A carriage return and a line feed that are read in two.
    for length in [65_520, 65_530, 65_535, 65_536, 65_537, 131_072] {
        let name = "n".repeat(length);
        let text = format!("submit,duration,owner\r\n1,1,{name}\r\n2,1,x\r\n");
        assert_eq!(seen(&text), [2, 3], "{length}");
    }
}

#[test]
fn what_is_compressed_is_known_by_its_bytes() {
    let (head, tail) = ("at,gpus\n0,1\n", "60,2\n120,3\n");
    let whole = [(0.0, 1.0), (60.0, 2.0), (120.0, 3.0)];
    let read = |bytes: &[u8]| demand_of(&Args::default(), &[bytes]).unwrap().0;
    assert_eq!(read(format!("{head}{tail}").as_bytes()), whole);
    assert_eq!(read(&[gzip(head), gzip(tail)].concat()), whole);
    // A frame to be skipped between two.
    let skipped = [0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
    assert_eq!(read(&[&zstd(head), &skipped[..], &zstd(tail)].concat()), whole);
    assert_eq!(read(&[&skipped[..], &zstd(head), &zstd(tail)].concat()), whole);
    let cut = gzip(&format!("{head}{tail}"));
    let error = demand_of(&Args::default(), &[&cut[..cut.len() - 9]]).unwrap_err();
    assert!(error.contains("can't read 0.csv"), "{error}");
    let error = demand_of(&Args::default(), &[&skipped[..9]]).unwrap_err();
    assert!(error.contains("can't read 0.csv"), "{error}");
}

#[test]
fn files_are_parts_or_are_summed() {
    let (parts, _) = demand(&["at,gpus\n120,3\n180,4\n", "at,gpus\n0,1\n60,2\n"]);
    assert_eq!(parts, [(0.0, 1.0), (60.0, 2.0), (120.0, 3.0), (180.0, 4.0)]);
    let (summed, warnings) = demand(&["at,gpus\n0,1\n60,2\n120,3\n", "at,gpus\n0,10\n120,20\n"]);
    assert_eq!(summed, [(0.0, 11.0), (60.0, 12.0), (120.0, 23.0)]);
    assert!(warnings.is_empty());
    // A cluster that came later and went earlier.
    let (summed, _) = demand(&["at,gpus\n0,1\n60,2\n120,3\n180,4\n", "at,gpus\n60,10\n"]);
    assert_eq!(summed, [(0.0, 1.0), (60.0, 12.0), (120.0, 3.0), (180.0, 4.0)]);
    let kinds = open(&Args::default(), &[b"at,gpus\n0,1\n", b"submit,duration\n0,1\n"]).unwrap_err();
    assert!(kinds.to_string().contains("1.csv has jobs and 0.csv has demand"), "{kinds}");
}

#[test]
fn gaps_are_told() {
    let mut text = "at,gpus\n".to_owned();
    for minute in (0..40).chain(100..140) {
        writeln!(text, "{},1", minute * 60).unwrap();
    }
    let (_, warnings) = demand(&[&text]);
    let gap = warnings.iter().next().unwrap();
    assert_eq!((gap.kind, gap.count, gap.line), (Kind::Gap, 1, 42));
    assert_eq!(gap.first, "3660 s since the sample before, usually 60 s");
}

#[test]
fn what_is_far_from_its_place_is_an_error() {
    let mut text = "at,gpus\n".to_owned();
    for second in 0..70_000 {
        writeln!(text, "{second},1").unwrap();
    }
    text.push_str("5,1\n");
    let error = error(&text);
    assert!(error.contains("0.csv:70002") && error.contains("sort"), "{error}");
}
