use std::io::Cursor;

use super::{Args, Error, Kind, Trace};
use crate::job::{Demand, Job};

fn open(args: &Args, files: &[&[u8]]) -> Result<Trace, Error> {
    let files = files
        .iter()
        .enumerate()
        .map(|(index, bytes)| {
            let bytes: Box<dyn std::io::Read + Send> = Box::new(Cursor::new(bytes.to_vec()));
            (format!("{index}.csv"), bytes)
        })
        .collect();
    args.open_bytes(files)
}

fn jobs(text: &str) -> (Vec<Job>, super::Warnings) {
    let Trace::Jobs(mut jobs) = open(&Args::default(), &[text.as_bytes()]).unwrap() else {
        panic!("no jobs")
    };
    (jobs.by_ref().collect::<Result<_, _>>().unwrap(), jobs.warnings())
}

fn demand(files: &[&str]) -> (Vec<Demand>, super::Warnings) {
    let files: Vec<&[u8]> = files.iter().map(|text| text.as_bytes()).collect();
    let Trace::Demand(mut samples) = open(&Args::default(), &files).unwrap() else { panic!("no demand") };
    (samples.by_ref().collect::<Result<_, _>>().unwrap(), samples.warnings())
}

#[test]
fn jobs_come_by_submit_time_with_their_lines() {
    let (jobs, warnings) = jobs("submit,duration,gpus,owner\n10,5,2,b\n\n3,7,1,a\n12,1,4,b\n");
    let seen: Vec<_> = jobs.iter().map(|job| (job.line, job.submit_s, &*job.owner)).collect();
    assert_eq!(seen, [(4, 3.0, "a"), (2, 10.0, "b"), (5, 12.0, "b")]);
    assert_eq!(warnings.count(Kind::OutOfOrder), 1);
}

#[test]
fn files_of_one_time_are_summed() {
    let (demand, _) = demand(&["at,gpus\n0,1\n60,2\n", "at,gpus\n60,10\n120,20\n"]);
    let seen: Vec<_> = demand.iter().map(|sample| (sample.at_s, sample.gpus)).collect();
    assert_eq!(seen, [(0.0, 1.0), (60.0, 10.0), (120.0, 20.0)]);
}
