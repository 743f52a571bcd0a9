//! Lists that come with published traces, and aren't traces: machines, what was owned. Small, and read whole: a row that is wrong is an error.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};

use super::{
    error::Error,
    input,
    rows::Rows,
    value::{self, Sizes, Times, Unusable},
};
use crate::{
    job::Demand,
    pool::{Machines, Pool, Serverless},
};

/// The header by which a list of machines of Alibaba's GPU cluster of 2023 ("openb") is known.
pub(super) const MACHINES: [&str; 5] = ["sn", "cpu_milli", "memory_mib", "gpu", "model"];

fn open(path: &Path) -> Result<Rows, Error> {
    let (bytes, _) = input::open(path, &Arc::new(AtomicU64::new(0)))?;
    Rows::new(bytes, &path.display().to_string(), None, true)
}

/// Openb's list of machines (`sn,cpu_milli,memory_mib,gpu,model`) as a pool. Neighbours of one shape are one entry; their order stays.
///
/// # Errors
/// When the file isn't such a list, or a row has no number where there should be one.
pub fn openb_machines(path: &Path) -> Result<Pool, Error> {
    let mut rows = open(path)?;
    let file = rows.file.to_string();
    let column = columns(&rows, MACHINES)?;
    let mut machines: Vec<Machines> = Vec::new();
    while let Some((line, row)) = rows.next()? {
        let cell = |index: usize| row.get(column[index]).unwrap_or_default();
        let number = |index: usize| {
            value::count(cell(index)).map_err(|why| wrong(&file, line, MACHINES[index], cell(index), why))
        };
        let machine = Machines {
            name: Arc::from(""),
            count: 1,
            model: Arc::from(String::from_utf8_lossy(cell(4)).trim()),
            gpus: number(3)?,
            cpu_milli: Some(u64::from(number(1)?)),
            memory_mib: Some(u64::from(number(2)?)),
            price_per_hour: None,
        };
        match machines.last_mut() {
            Some(last) if Machines { count: 1, name: Arc::from(""), ..last.clone() } == machine => {
                last.count += 1;
            }
            _ => machines
                .push(Machines { name: Arc::from(String::from_utf8_lossy(cell(0)).trim()), ..machine }),
        }
    }
    if machines.is_empty() {
        return Err(Error::NoRows { file, first: None });
    }
    Ok(Pool { machines, serverless: Serverless::default() })
}

/// Helios' list of what was owned (`date,vc…,total`): GPUs in all from each day on.
///
/// # Errors
/// When a row has no number where there should be one.
pub(super) fn owned(mut rows: Rows) -> Result<Vec<Demand>, Error> {
    let file = rows.file.to_string();
    let [date, total] = columns(&rows, ["date", "total"])?;
    let mut owned = Vec::new();
    while let Some((line, row)) = rows.next()? {
        let cell = |column: usize| row.get(column).unwrap_or_default();
        let at_s = Times::default()
            .at(None, &Sizes::default(), f64::MIN, cell(date))
            .map_err(|why| wrong(&file, line, "date", cell(date), why))?;
        let gpus = value::number(cell(total)).map_err(|why| wrong(&file, line, "total", cell(total), why))?;
        owned.push(Demand { line, at_s, gpus });
    }
    Ok(owned)
}

fn columns<const N: usize>(rows: &Rows, names: [&'static str; N]) -> Result<[usize; N], Error> {
    let mut found = [0; N];
    for (found, name) in found.iter_mut().zip(names) {
        *found =
            rows.header.iter().position(|column| column.eq_ignore_ascii_case(name)).ok_or_else(|| {
                Error::Missing {
                    file: rows.file.to_string(),
                    preset: "openb",
                    missing: name.to_owned(),
                    header: rows.header.join(", "),
                    example: name,
                }
            })?;
    }
    Ok(found)
}

fn wrong(file: &str, line: u64, column: &str, cell: &[u8], why: Unusable) -> Error {
    let cell = String::from_utf8_lossy(cell);
    Error::Row { file: file.to_owned(), line, what: format!("{column} {cell:?} is {}", why.words()) }
}
