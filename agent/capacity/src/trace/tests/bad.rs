//! What is wrong with traces that people have.

use proptest::prelude::*;

use super::{Args, Kind, Trace, demand, demand_of, error, jobs, jobs_of, open};
use crate::trace::{Mapping, Preset, TimeUnit};

/// The only warning's kind, count and line.
fn warned(text: &str) -> (Kind, u64, u64, String) {
    let (_, warnings) = jobs(text);
    let all: Vec<_> = warnings.iter().collect();
    assert_eq!(all.len(), 1, "{all:?}");
    (all[0].kind, all[0].count, all[0].line, all[0].first.clone())
}

#[test]
fn rows_that_are_no_jobs_are_skipped_and_counted() {
    for (row, kind, first) in [
        (
            "x,1,1",
            Kind::BadTime,
            "submit \"x\" is not a time: seconds, 2020-05-01 00:00:00 or 2020-05-01T00:00:00Z",
        ),
        (
            "NaN,1,1",
            Kind::BadTime,
            "submit \"NaN\" is not a time: seconds, 2020-05-01 00:00:00 or 2020-05-01T00:00:00Z",
        ),
        (",1,1", Kind::BadTime, "submit \"\" is empty"),
        (
            "99999999999999999999999,1,1",
            Kind::BadTime,
            "submit \"99999999999999999999999\" is beyond the year 9999",
        ),
        ("5,-1,1", Kind::NegativeDuration, "duration \"-1\" is negative"),
        ("5,inf,1", Kind::BadTime, "duration \"inf\" is not a duration: seconds, [days-]hh:mm:ss or 1h30m"),
        ("5,,1", Kind::Unfinished, "duration \"\" is no duration"),
        ("5,1,-1", Kind::BadNumber, "gpus \"-1\" is negative"),
        ("5,1,nan", Kind::BadNumber, "gpus \"nan\" is not a number"),
        ("5,1,1.5", Kind::BadNumber, "gpus \"1.5\" is neither a whole number nor a share of one GPU"),
        ("5,1,4294967296", Kind::BadNumber, "gpus \"4294967296\" is too large"),
        ("5,1,4294967295", Kind::BadNumber, "the job asks for more than a million GPUs or pods"),
        ("5,1,1e400", Kind::BadNumber, "gpus \"1e400\" is not a number"),
        ("5,1,", Kind::BadNumber, "gpus \"\" is empty"),
        ("5", Kind::ShortRow, "the row has cells missing"),
        ("5,1,1,1", Kind::LongRow, "the row has more cells than columns"),
        ("5,1,\u{1b}[2J\u{0}", Kind::BadNumber, "gpus \"\\u{1b}[2J\\0\" is not a number"),
    ] {
        let text = format!("submit,duration,gpus\n1,1,1\n{row}\n{row}\n9,1,1\n");
        assert_eq!(warned(&text), (kind, 2, 3, first.to_owned()), "{row}");
    }
    let long = format!("submit,duration,gpus\n1,1,1\n1,1,{}\n", "x".repeat(100_000));
    assert!(warned(&long).3.len() < 100);
}

#[test]
fn ends_before_beginnings_are_no_durations() {
    let header = "name,num_gpu,gpu_milli,creation_time,deletion_time,scheduled_time\na,1,1000,0,9,5\n";
    let kind = |row: &str| warned(&format!("{header}{row}\n")).0;
    assert_eq!(kind("b,1,1000,10,5,"), Kind::NegativeDuration);
    assert_eq!(kind("b,1,1000,10,20,30"), Kind::NegativeDuration);
    assert_eq!(kind("b,1,1000,10,20,"), Kind::NeverRan);
    assert_eq!(kind("b,1,1000,10,,12"), Kind::Unfinished);
    assert_eq!(kind("b,1,1001,10,20,12"), Kind::BadNumber);
    assert_eq!(kind("b,1,1000,10,20,20"), Kind::ZeroDuration);
}

#[test]
fn files_that_are_no_traces_are_errors() {
    for (text, told) in [
        ("", "0.csv is empty"),
        ("\u{feff}\n\n", "0.csv is empty"),
        ("submit,duration,gpus\n", "0.csv has no row that can be used"),
        (
            "submit,duration,gpus\nx,1,1\n",
            "no row that can be used: rows skipped, without a time that can be read: 1 (first 0.csv:2: submit",
        ),
        ("1,2,3\n4,5,6\n", "0.csv:1: the first line looks like data"),
        ("a,b\n", "can't tell what its columns mean (a, b)"),
        ("submit,gpus\n", "can't tell what its columns mean"),
        ("submit,duration,gpus,gpus\n1,1,1,1\n", "column gpus is there 2 times"),
        ("{\"a\":1}", "0.csv is JSON"),
        ("PK\u{3}\u{4}", "0.csv is a zip archive"),
        ("a\u{0}b", "0.csv is no text"),
        ("\u{18}\u{1f}7", "0.csv is no text"),
        ("sn,cpu_milli,memory_mib,gpu,model\n", "lists machines"),
        ("date,vc1,total\n", "how many GPUs were owned"),
    ] {
        let error = error(text);
        assert!(error.contains(told), "{text:?}: {error}");
    }
    let open_quote = format!("submit,duration,owner\n1,1,a\n2,1,\"{}", "b\n".repeat(1 << 20));
    assert!(error(&open_quote).contains("0.csv:3: a row of more than 1048576 bytes"));
    assert!(error(&"x".repeat(3 << 20)).contains("0.csv:1: a row of more than"));
    assert!(open(&Args::default(), &[]).unwrap_err().to_string().contains("no trace"));
}

#[test]
fn strict_ends_at_the_first_doubt() {
    let strict = Args { strict: true, ..Args::default() };
    let read = |text: &str| jobs_of(&strict, &[text.as_bytes()]).unwrap_err();
    assert_eq!(read("submit,duration,gpus\n1,1,1\n1,-1,1\n"), "0.csv:3: duration \"-1\" is negative");
    assert_eq!(read("submit,duration,gpus\n2,1,1\n1,1,1\n"), "0.csv:3: submitted before the row above it");
}

#[test]
fn rows_of_one_time_count_once() {
    let (samples, warnings) = demand(&["at,gpus\n0,1\n60,2\n60,3\n120,4\n"]);
    assert_eq!(samples, [(0.0, 1.0), (60.0, 3.0), (120.0, 4.0)]);
    assert_eq!(warnings.count(Kind::Duplicate), 1);
    let (samples, warnings) = demand(&["at,gpus\n0,1\n60,2\n", "at,gpus\n60,3\n120,4\n"]);
    assert_eq!(samples, [(0.0, 1.0), (60.0, 3.0), (120.0, 4.0)]);
    assert_eq!(warnings.count(Kind::Duplicate), 1);
}

#[test]
fn columns_are_mapped_by_name_or_number() {
    let mapped = |columns: &str, no_header, text: &str| {
        let args = Args { columns: Some(columns.parse()?), no_header, ..Args::default() };
        jobs_of(&args, &[text.as_bytes()])
            .map(|(jobs, _)| {
                jobs.iter().map(|job| (job.submit_s, job.duration_s, job.request.gpus)).collect()
            })
            .map_err(|what| crate::trace::Error::Mapping { what })
    };
    let rows = vec![(5.0, 7.0, 2)];
    assert_eq!(mapped("submit=Born, duration=lived,gpus=3", false, "born;LIVED;n\n5;7;2\n").unwrap(), rows);
    assert_eq!(mapped("submit=1,duration=2,gpus=3", true, "5\t7\t2\n").unwrap(), rows);
    let told = |columns: &str| {
        mapped(columns, false, "born,lived\n5,7\n").map(|_: Vec<_>| ()).unwrap_err().to_string()
    };
    assert!(told("submit=bron").contains("needs bron for submit; the columns are born, lived"));
    assert!(told("submit=born").contains("needs duration or end"));
    assert!(told("sumbit=born").contains("no key \"sumbit\"; there are submit, start"));
    assert!(told("submit").contains("not KEY=COLUMN"));
    assert!("submit=a,submit=b".parse::<Mapping>().is_err());
}

#[test]
fn times_are_read_in_their_usual_forms() {
    let read = |args: &Args, cell: &str| {
        let (jobs, _) = jobs_of(args, &[format!("submit,duration,gpus\n{cell},1,1\n").as_bytes()]).unwrap();
        jobs[0].submit_s
    };
    let plain = Args::default();
    for cell in [
        "1588291200",
        "1588291200000",
        "1588291200000000",
        "1588291200000000000",
        "2020-05-01 00:00:00",
        "2020-05-01",
        "2020/05/01 00:00:00",
        "2020-05-01T00:00:00",
        "2020-05-01T00:00:00Z",
        "2020-05-01T02:00:00+02:00",
        "2020-05-01 02:00:00+02:00",
        " 1588291200.0 ",
    ] {
        assert_eq!(read(&plain, cell).to_bits(), 1_588_291_200.0_f64.to_bits(), "{cell}");
    }
    let east = Args { time_zone: Some(jiff::tz::TimeZone::fixed(jiff::tz::offset(8))), ..Args::default() };
    assert_eq!(read(&east, "2020-05-01 08:00:00").to_bits(), 1_588_291_200.0_f64.to_bits());
    assert_eq!(read(&east, "2020-05-01T00:00:00Z").to_bits(), 1_588_291_200.0_f64.to_bits());
    let millis = Args { time_unit: Some(TimeUnit::Ms), ..Args::default() };
    assert_eq!(read(&millis, "1500").to_bits(), 1.5_f64.to_bits());
    for (text, seconds) in
        [("90", 90.0), ("1-02:03:04", 93_784.0), ("00:01:30.5", 90.5), ("01:30", 90.0), ("1h30m", 5400.0)]
    {
        assert_eq!(crate::trace::duration(text), Ok(seconds), "{text}");
    }
    for text in ["", "-1", "1:", ":", "1-", "h", "1x", "1:2:3:4", "-01:00", "1--2:00"] {
        assert!(crate::trace::duration(text).is_err(), "{text}");
    }
}

#[test]
fn names_that_are_no_text_are_told_once_each() {
    let text = b"submit,duration,gpus,owner\n1,1,1,\xff\n2,1,1,\xff\n3,1,1,\xfe\n";
    let (jobs, warnings) = jobs_of(&Args::default(), &[text]).unwrap();
    assert_eq!(&*jobs[0].owner, "\u{fffd}");
    assert_eq!(warnings.count(Kind::BadText), 2);
}

fn read_all(args: &Args, files: &[&[u8]]) {
    match open(args, files) {
        Ok(Trace::Jobs(jobs)) => {
            let mut before = f64::NEG_INFINITY;
            for job in jobs.map_while(Result::ok) {
                assert!(job.submit_s.is_finite() && job.submit_s >= before && job.duration_s >= 0.0);
                before = job.submit_s;
            }
        }
        Ok(Trace::Demand(samples)) => {
            let mut before = f64::NEG_INFINITY;
            for sample in samples.map_while(Result::ok) {
                assert!(sample.at_s > before && sample.gpus.is_finite() && sample.gpus >= 0.0);
                before = sample.at_s;
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_are_a_trace_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_all(&Args::default(), &[&bytes]);
        let presets = [Preset::Jobs, Preset::Demand, Preset::Helios, Preset::Sacct, Preset::Openb];
        for preset in presets {
            read_all(&Args { preset: Some(preset), ..Args::default() }, &[&bytes]);
        }
    }

    #[test]
    fn any_cells_are_rows_or_warnings(
        header in "submit,duration,gpus|at,gpus|jobid.submit.end.elapsed.alloctres|timestamp,value,pod",
        body in "([-0-9a-zT:.,|=\"/ \n\r+]|nan|2020-05-01|gres/gpu=){0,60}",
    ) {
        let text = format!("{}\n{body}", header.replace('.', "|"));
        read_all(&Args::default(), &[text.as_bytes()]);
        read_all(&Args::default(), &[text.as_bytes(), text.as_bytes()]);
    }
}

#[test]
fn jobs_are_no_demand() {
    assert!(demand_of(&Args::default(), &[b"submit,duration\n1,1\n"]).is_err());
    assert!(jobs_of(&Args::default(), &[b"at,gpus\n1,1\n"]).unwrap_err().contains("no jobs"));
}

#[test]
fn times_of_two_units_are_refused() {
    // Microseconds since the trace began: small ones look like seconds, large ones like milliseconds.
    let text = "submit_time,end_time,gpus\n1266000000,1779000000,4\n99000000000,128639000000,4\n";
    let told = error(text);
    assert!(
        told.contains("0.csv:3")
            && told.contains("in s")
            && told.contains("in ms")
            && told.contains("--time-unit"),
        "{told}"
    );
    let args = Args { time_unit: Some(TimeUnit::Us), ..Args::default() };
    let (jobs, warnings) = jobs_of(&args, &[text.as_bytes()]).unwrap();
    assert_eq!(jobs.iter().map(|job| job.duration_s).collect::<Vec<_>>(), [513.0, 29_639.0]);
    assert!(warnings.is_empty());
    assert!(error("time,gpus\n1700000000,1\n1700000060000,1\n").contains("0.csv:3"));
    // Each file has its own; 0 and -1 have none.
    assert_eq!(demand(&["time,gpus\n0,1\n1700000000000,1\n", "time,gpus\n1700000060,2\n"]).0.len(), 3);
}

#[test]
fn jobs_that_are_there_twice_or_for_years_are_told() {
    let text = "id,submit,duration,gpus\n7,0,60,1\n8,10,60,1\n7,20,60,1\n9,30,100000000,1\n";
    let (jobs, warnings) = jobs(text);
    assert_eq!((jobs.len(), warnings.count(Kind::SameId), warnings.count(Kind::LongDuration)), (4, 1, 1));
    let told: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert!(told[0].contains("0.csv:4: id \"7\" was there before"), "{told:?}");
    assert!(told[1].contains("1157 days"), "{told:?}");
    let args = Args { strict: true, ..Args::default() };
    assert!(jobs_of(&args, &[text.as_bytes()]).unwrap_err().contains("0.csv:4"));
}
