//! A trace that is split changes nothing.

use proptest::prelude::*;

use super::{Args, demand_of, gzip, jobs_of, zstd};

/// `rows` below `header`, cut at `cuts`, each part with the header, packed in turn as `packing` says.
fn parts(header: &str, rows: &[String], cuts: &[usize], packing: u8) -> Vec<Vec<u8>> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (rows.len() + 1)).collect();
    cuts.extend([0, rows.len()]);
    cuts.sort_unstable();
    let parts = cuts.windows(2).enumerate().map(|(index, pair)| {
        let mut text = header.to_owned();
        for row in &rows[pair[0]..pair[1]] {
            text.push_str(row);
        }
        match (usize::from(packing) + index) % 3 {
            0 => text.into_bytes(),
            1 => gzip(&text),
            _ => zstd(&text),
        }
    });
    parts.collect()
}

fn references(parts: &[Vec<u8>]) -> Vec<&[u8]> {
    parts.iter().map(Vec::as_slice).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn of_jobs_in_any_order(
        times in proptest::collection::vec((0_u32..50, 0_u32..9, 0_u32..9), 1..40),
        cuts in proptest::collection::vec(any::<usize>(), 0..5),
        packing in 0_u8..3,
    ) {
        let rows: Vec<String> = times.iter().map(|(at, long, gpus)| format!("{at},{long},{gpus},team-{gpus}\n")).collect();
        let header = "submit,duration,gpus,owner\n";
        let read = |parts: &[Vec<u8>]| {
            let (jobs, warnings) = jobs_of(&Args::default(), &references(parts)).unwrap();
            // Lines are those of the parts.
            let jobs: Vec<_> = jobs.into_iter().map(|job| crate::job::Job { line: 0, ..job }).collect();
            let zero = warnings.count(crate::trace::Kind::ZeroDuration);
            (jobs, zero)
        };
        let mut sorted = rows.clone();
        sorted.sort_by_key(|row| row.split(',').next().unwrap().parse::<u32>().unwrap());
        let whole = read(&parts(header, &sorted, &[], 0));
        prop_assert_eq!(&whole, &read(&parts(header, &rows, &[], 0)));
        prop_assert_eq!(&whole, &read(&parts(header, &sorted, &cuts, packing)));
        prop_assert_eq!(&whole, &read(&parts(header, &rows, &cuts, packing)));
    }

    #[test]
    fn of_demand_in_order(
        steps in proptest::collection::vec((0_u32..5, 0_u32..9), 1..40),
        cuts in proptest::collection::vec(any::<usize>(), 0..5),
        packing in 0_u8..3,
        labelled in any::<bool>(),
    ) {
        let mut at = 0;
        let rows: Vec<String> = steps.iter().map(|(step, gpus)| {
            // Rows of one time are summed where they have owners; else a trace has none.
            at += if labelled { *step } else { step + 1 };
            if labelled { format!("{at},{gpus},a\n") } else { format!("{at},{gpus}\n") }
        }).collect();
        let header = if labelled { "at,gpus,owner\n" } else { "at,gpus\n" };
        let read = |parts: &[Vec<u8>]| demand_of(&Args::default(), &references(parts)).unwrap();
        let (samples, warnings) = read(&parts(header, &rows, &[], 0));
        let (split, split_warnings) = read(&parts(header, &rows, &cuts, packing));
        prop_assert_eq!(samples, split);
        let counts = |warnings: &crate::trace::Warnings| warnings.iter().map(|one| (one.kind, one.count)).collect::<Vec<_>>();
        prop_assert_eq!(counts(&warnings), counts(&split_warnings));
    }
}
