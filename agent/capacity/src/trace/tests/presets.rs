//! Traces as others export them.

use std::path::{Path, PathBuf};

use super::{Args, Kind, Warnings, demand, demand_of, jobs, jobs_of};
use crate::trace::{Counted, lists, summary::Summary};

const SACCT: &str = "\
JobID|JobName|User|Account|Submit|Start|End|Elapsed|NNodes|State|AllocTRES|ReqTRES
1001|train|ann|vision|2024-01-01T00:00:00|2024-01-01T00:10:00|2024-01-02T02:13:04|1-02:03:04|2|COMPLETED|billing=32,cpu=32,gres/gpu:a100=16,gres/gpu=16,mem=512G,node=2|billing=32,cpu=32,gres/gpu=16,mem=512G,node=2
1001.batch|batch||vision|2024-01-01T00:10:00|2024-01-01T00:10:00|2024-01-02T02:13:04|1-02:03:04|1|COMPLETED|cpu=16,gres/gpu=8,mem=256G,node=1|
1001.extern|extern||vision|2024-01-01T00:10:00|2024-01-01T00:10:00|2024-01-02T02:13:04|1-02:03:04|2|COMPLETED|billing=32,cpu=32,node=2|
1002_7|array|bob|nlp|2024-01-01T00:05:00|2024-01-01T00:06:00|2024-01-01T00:07:30|00:01:30|1|CANCELLED by 1000|billing=4,cpu=4,gres/gpu=1,mem=62.50G,node=1|billing=4,cpu=4,gres/gpu=1,mem=62.50G,node=1
1003|waits|bob|nlp|2024-01-01T00:06:00|None|2024-01-01T00:20:00|00:00:00|1|CANCELLED by 1000||billing=4,gres/gpu=1,node=1
1004|old|bob|nlp|2024-01-01T00:06:30|2024-01-01T00:20:00|2024-01-01T00:20:00|00:00:00|1|CANCELLED by 1000||billing=4,gres/gpu=1,node=1
1005|runs|ann|vision|2024-01-01T00:07:00|2024-01-01T00:08:00|Unknown|3-00:00:00|1|RUNNING|cpu=4,gres/gpu=2,node=1|cpu=4,gres/gpu=2,node=1
1006|cpu|ann|vision|2024-01-01T00:08:00|2024-01-01T00:09:00|2024-01-01T00:19:00|00:10:00|1|FAILED|cpu=4,mem=4000M,node=1|cpu=4,node=1
";

#[test]
fn slurms_jobs_are_read_without_their_steps() {
    let (jobs, warnings) = jobs(SACCT);
    assert_eq!(jobs.len(), 3);
    let first = &jobs[0];
    assert_eq!((first.line, first.pods, first.gang, first.request.gpus), (2, 2, true, 8));
    assert_eq!((first.request.cpu_milli, first.request.memory_mib), (16_000, 256 * 1024));
    assert_eq!(&*first.request.models[0], "a100");
    assert_eq!(&*first.owner, "vision");
    assert_eq!(first.duration_s.to_bits(), 93_784.0_f64.to_bits());
    assert_eq!(
        (jobs[1].pods, jobs[1].gang, jobs[1].request.gpus, jobs[1].request.memory_mib),
        (1, false, 1, 64_000)
    );
    assert_eq!(jobs[2].request.gpus, 0);
    assert_eq!((warnings.count(Kind::NeverRan), warnings.count(Kind::Unfinished)), (2, 1));
    // With --parsable each row ends with a separator.
    let trailing = SACCT.replace('\n', "|\n");
    assert_eq!(super::jobs(&trailing).0, jobs);
}

#[test]
fn series_of_prometheus_are_summed() {
    let text =
        "timestamp,value,namespace\n1700000000,2,a\n1700000000,3,b\n1700000060,NaN,a\n1700000060,4,b\n";
    let (samples, warnings) = demand(&[text]);
    assert_eq!(samples, [(1.7e9, 5.0), (1.7e9 + 60.0, 4.0)]);
    assert_eq!(warnings.count(Kind::BadNumber), 1);
}

#[test]
fn what_was_recorded_is_summed_over_pools_and_owners() {
    let text = "at,pool,owner,gpus\n2026-11-01T00:00:00Z,h100,a,8\n2026-11-01T00:00:00Z,vk,a,2\n2026-11-01T00:05:00Z,h100,a,0\n";
    assert_eq!(demand(&[text]).0.iter().map(|(_, gpus)| *gpus).collect::<Vec<_>>(), [10.0, 0.0]);
}

#[test]
fn own_columns_are_all_read() {
    let text = "submit,end,gpus,gpu_milli,pods,gang,cpu,memory,models,deadline,priority,owner\n0,60,1,500,3,no,1500m,2Gi,A100|H100,90,7,team\n";
    let (jobs, warnings) = jobs(text);
    let job = &jobs[0];
    assert!(warnings.is_empty());
    assert_eq!((job.pods, job.gang, job.priority, job.deadline_s), (3, false, 7, Some(90.0)));
    assert_eq!((job.request.gpus, job.request.gpu_milli), (1, 500));
    assert_eq!((job.request.cpu_milli, job.request.memory_mib), (1500, 2048));
    assert_eq!(job.request.models.iter().map(|model| &**model).collect::<Vec<_>>(), ["A100", "H100"]);
    // GPUs of a whole job, as many traces tell them.
    let text = "job_id,gpu_num,node_num,submit_time,start_time,end_time,duration\nx,16,2,2020-04-01 00:00:00,2020-04-01 00:01:00,2020-04-01 00:02:00,60\n";
    let (jobs, _) = super::jobs(text);
    assert_eq!((jobs[0].pods, jobs[0].request.gpus, jobs[0].gang), (2, 8, true));
    let (_, warnings) = super::jobs("submit,duration\n1,1\n");
    assert_eq!(warnings.count(Kind::Assumed), 1);
}

/// The published traces, where they are.
fn data(folder: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(folder);
    path.is_dir().then_some(path)
}

#[test]
fn helios_clusters_are_summed() {
    let text = |running| {
        format!("time,running_gpu_num,pending_gpu_num,idle_gpu_num\n2020-05-01 00:00:00,{running},5,0\n")
    };
    let files = [text(50), text(7)];
    let files: Vec<&[u8]> = files.iter().map(String::as_bytes).collect();
    let at = 1_588_291_200.0;
    assert_eq!(demand_of(&Args::default(), &files).unwrap().0, [(at, 67.0)]);
    let running = Args { demand: Counted::Running, ..Args::default() };
    assert_eq!(demand_of(&running, &files).unwrap().0, [(at, 57.0)]);
    let Some(folder) = data("helios-earth") else { return };
    // All 16 clusters are the optimizer's test: here is one, and the list of what was owned beside it.
    let files = ["earth_vc3sl.csv.gz", "Earth_gpu_number.csv.gz"].map(|name| folder.join(name)).to_vec();
    let summary = Summary::of(Args { files, ..Args::default() }.open().unwrap()).unwrap();
    assert_eq!(summary.demand.as_ref().unwrap().samples, 44_640);
    assert_eq!(summary.demand.unwrap().owned_gpus, Some(856.0));
}

#[test]
fn openb_has_pods_and_machines() {
    let Some(folder) = data("openb") else { return };
    let files = vec![folder.join("openb_pod_list_default.csv.gz")];
    let summary = Summary::of(Args { files, ..Args::default() }.open().unwrap()).unwrap();
    let jobs = summary.jobs.unwrap();
    assert_eq!((jobs.jobs, summary.warnings.count(Kind::NeverRan)), (7255, 897));
    let pool = lists::openb_machines(&folder.join("openb_node_list_gpu_node.csv.gz")).unwrap();
    let machines: u32 = pool.machines.iter().map(|machines| machines.count).sum();
    let gpus: u32 = pool.machines.iter().map(|machines| machines.count * machines.gpus).sum();
    assert_eq!((machines, gpus), (1213, 6212));
    pool.check().unwrap();
    let files = vec![folder.join("openb_pod_list_multigpu50.csv.gz")];
    let asked = Args { files, asks_only: true, ..Args::default() }.open().unwrap().jobs().unwrap();
    assert_eq!(asked.map(Result::unwrap).count(), 9061);
}

#[test]
fn a_list_of_machines_is_a_pool() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nodes.csv");
    std::fs::write(
        &path,
        "sn,cpu_milli,memory_mib,gpu,model\na,64000,262144,2,P100\nb,64000,262144,2,P100\nc,96000,1,8,\n",
    )
    .unwrap();
    let pool = lists::openb_machines(&path).unwrap();
    assert_eq!(
        pool.machines.iter().map(|machines| (&*machines.name, machines.count)).collect::<Vec<_>>(),
        [("a", 2), ("c", 1)]
    );
    std::fs::write(&path, "sn,cpu_milli,memory_mib,gpu,model\na,x,262144,2,P100\n").unwrap();
    assert!(
        lists::openb_machines(&path).unwrap_err().to_string().contains(":2: cpu_milli \"x\" is not a number")
    );
    assert!(jobs_of(&Args::default(), &[b"a"]).is_err());
}

#[test]
fn names_are_known_however_they_are_written() {
    let read = |header: &str, row: &str| {
        let (jobs, warnings) = jobs(&format!("{header}\n{row}\n"));
        let job = &jobs[0];
        ((job.submit_s, job.duration_s, job.request.gpus, job.pods), warnings)
    };
    for (header, row) in [
        ("Submit Time,EndTime,Num GPUs", "60,120,2"),
        ("created_at,finished_at,gpus_requested", "1970-01-01T01:01:00+01:00,1970-01-01T00:02:00Z,2"),
        ("arrival_time_ms\trun_time_min\tgpu_count", "60000\t1\t2"),
        ("submitTimeMillis;durationSeconds;gpus", "60000;60;2"),
    ] {
        let (job, warnings) = read(header, row);
        assert_eq!(job, (60.0, 60.0, 2, 1), "{header}");
        assert!(warnings.is_empty(), "{header}: {warnings:?}");
    }
    // Nothing tells what durations are in beside times in milliseconds.
    let (job, warnings) = read("submit_time,duration,gpus", "1700000000000,60,2");
    assert_eq!(job, (1.7e9, 60.0, 2, 1));
    assert_eq!(warnings.count(Kind::Assumed), 1);
}

#[test]
fn a_column_of_gpus_that_is_not_known_is_no_gpu_for_each_job() {
    let told = |text: &str| jobs_of(&Args::default(), &[text.as_bytes()]).unwrap_err();
    let error = told("submit,duration,GPU demand (avg)\n0,1,4\n");
    assert!(
        error.contains("is \"GPU demand (avg)\" how many GPUs") && error.contains("--columns gpus="),
        "{error}"
    );
    let said = Args { preset: Some(crate::trace::Preset::Jobs), ..Args::default() };
    let (jobs, warnings) = jobs_of(&said, &[b"submit,duration,gpu_util\n0,1,4\n"]).unwrap();
    assert_eq!((jobs[0].request.gpus, warnings.count(Kind::Assumed)), (1, 1));
}

#[test]
fn shares_of_a_gpu_are_read() {
    let (jobs, warnings) = jobs("submit,duration,GPU-shares\n0,60,0.25\n1,60,1\n2,60,0\n3,60,1.5\n4,60,2\n");
    let asked: Vec<_> = jobs.iter().map(|job| (job.request.gpus, job.request.gpu_milli)).collect();
    assert_eq!(asked, [(1, 250), (1, 1000), (0, 1000), (2, 1000)]);
    assert_eq!(warnings.count(Kind::BadNumber), 1);
    assert!(warnings.iter().any(|warning| warning.first.contains("nor a share of one GPU")));
}

#[test]
fn grafanas_series_are_summed() {
    let text = "\u{feff}sep=;\r\n\"Time\";\"vision (GPUs)\";\"{namespace=\"\"nlp\"\"}\"\r\n\
        1700000000000;2;3\r\n1700000060000;;0,5\r\n1700000120000;;\r\n1700000180000;x;1\r\n";
    let (samples, warnings) = demand(&[text]);
    assert_eq!(samples, [(1.7e9, 5.0), (1.7e9 + 60.0, 0.5)]);
    let told: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert!(told[0].contains("vision (GPUs), {namespace=\"nlp\"}"), "{told:?}");
    assert_eq!((warnings.count(Kind::Assumed), warnings.count(Kind::BadNumber)), (1, 2));
    assert!(told[1].contains("first 0.csv:5"), "{told:?}");
    // Nothing is assumed where it was said, and one of several can be named.
    let single = b"Time,sum(gpus)\n2023-11-14 22:13:20,4\n";
    let warned = |preset| {
        let (samples, warnings) = demand_of(&Args { preset, ..Args::default() }, &[single]).unwrap();
        assert_eq!(samples, [(1.7e9, 4.0)]);
        warnings.count(Kind::Assumed)
    };
    assert_eq!((warned(None), warned(Some(crate::trace::Preset::Grafana))), (1, 0));
    let args = Args { columns: Some("gpus=b".parse().unwrap()), ..Args::default() };
    let (samples, warnings) = demand_of(&args, &[b"time,a,b\n60,1,7\n"]).unwrap();
    assert_eq!((samples, warnings), (vec![(60.0, 7.0)], Warnings::default()));
}

#[test]
fn padded_columns_are_read_as_kubectl_writes_them() {
    let text = "NAMESPACE   NAME   CREATED                STARTED                FINISHED               GPUS   PODS\n\
        ml          a b    2026-09-01T00:00:00Z   2026-09-01T00:01:00Z   2026-09-01T01:01:00Z   8      2   \n\
        ads         c      2026-09-01T00:05:00Z   <none>                 <none>                 1      1\n";
    let (jobs, warnings) = jobs(text);
    assert_eq!((jobs.len(), &*jobs[0].owner, jobs[0].pods, jobs[0].request.gpus), (1, "ml", 2, 8));
    assert_eq!(jobs[0].duration_s.to_bits(), 3600.0_f64.to_bits());
    assert_eq!((jobs[0].line, warnings.count(Kind::Unfinished)), (2, 1));
}

#[test]
fn numbers_are_read_as_spreadsheets_write_them() {
    let semicolons = "submit;duration;gpus;owner\n0;1.234,5;4,0;a,b\n60;1234,25;0,25;\n";
    let found = jobs(semicolons).0;
    let durations: Vec<f64> = found.iter().map(|job| job.duration_s).collect();
    assert_eq!(durations, [1234.5, 1234.25]);
    assert_eq!((found[0].request.gpus, &*found[0].owner, found[1].request.gpu_milli), (4, "a,b", 250));
    let commas = "submit,duration,gpus\n0,\"1,234.5\",4\n60,\"12,34\",4\n";
    let (found, warnings) = jobs(commas);
    assert_eq!((found.len(), found[0].duration_s.to_bits()), (1, 1234.5_f64.to_bits()));
    assert_eq!(warnings.count(Kind::BadTime), 1);
}

#[test]
fn schedulers_names_are_known() {
    let check = |text: &str, seconds: f64, pods: u32, gpus: u32| {
        let (jobs, _) = jobs(text);
        assert_eq!((jobs.len(), jobs[0].pods, jobs[0].request.gpus), (1, pods, gpus), "{text}");
        assert_eq!((jobs[0].submit_s, jobs[0].duration_s), (60.0, seconds), "{text}");
    };
    check(
        "Job ID;qtime;start;end;resources_used.walltime;Resource_List.ngpus;Resource_List.nodect\n1.pbs;60;70;180;00:01:50;16;2\n",
        110.0,
        2,
        8,
    );
    check(
        "JOBID,SUBMIT_TIME,START_TIME,FINISH_TIME,RUN_TIME,NUM_GPUS,NEXEC_HOST\n1,60,70,180,110 second(s),4,1\n",
        110.0,
        1,
        4,
    );
    check("jobid,vc,submitted_time,start_time,end_time,num_gpus\na,v,60,70,180,2\n", 110.0, 1, 2);
    check(
        "job_name,task_name,inst_num,status,start_time,end_time,plan_cpu,plan_mem,plan_gpu,gpu_type\nj,worker,2.0,Terminated,60.0,180.0,600.0,29.3,400.0,V100\n",
        120.0,
        2,
        4,
    );
    let shares = jobs("start_time,end_time,plan_gpu\n0,60,25\n0,60,150\n");
    assert_eq!((shares.0[0].request.gpus, shares.0[0].request.gpu_milli), (1, 250));
    assert_eq!((shares.1.count(Kind::BadNumber), shares.1.count(Kind::Assumed)), (1, 1));
}

#[test]
fn gpus_in_all_are_one_pods_or_a_gangs() {
    let text = b"submit,duration,num_gpus\n0,60,8\n1,60,32\n2,60,12\n3,60,13\n4,60,0.5\n";
    let shapes = |args: &Args| -> (Vec<(u32, u32)>, u64) {
        let (jobs, warnings) = jobs_of(args, &[text]).unwrap();
        (jobs.iter().map(|job| (job.pods, job.request.gpus)).collect(), warnings.count(Kind::OnePod))
    };
    assert_eq!(shapes(&Args::default()), (vec![(1, 8), (1, 32), (1, 12), (1, 13), (1, 1)], 3));
    let most = |most| Args { gpus_per_pod: Some(most), ..Args::default() };
    assert_eq!(shapes(&most(8)), (vec![(1, 8), (4, 8), (2, 6), (13, 1), (1, 1)], 0));
    assert_eq!(shapes(&most(16)).0, [(1, 8), (2, 16), (1, 12), (1, 13), (1, 1)]);
    // Where pods are told, they count.
    let told = "submit,duration,num_gpus,nodes\n0,60,32,2\n";
    let (found, warnings) = jobs_of(&most(8), &[told.as_bytes()]).unwrap();
    assert_eq!((found[0].pods, found[0].request.gpus, warnings.is_empty()), (2, 16, true));
}

#[test]
fn times_have_many_spellings() {
    let check = |cell: &str, at_s: f64| {
        assert_eq!(demand(&[&format!("time,gpus\n{cell},1\n")]).0, [(at_s, 1.0)], "{cell}");
    };
    let at_s = 1_588_291_200.0;
    for cell in [
        "2020-05-01 00:00:00",
        "2020-05-01T00:00",
        "2020/05/01 00:00:00",
        "01.05.2020 00:00",
        "2020-05-01 00:00:00 UTC",
        "2020-05-01 00:00:00 +0000",
        "2020-05-01 02:00:00 +02:00",
        "2020-05-01 02:00:00+02",
        "2020-05-01T00:00:00.000Z",
        "1588291200",
        "1588291200000",
        "1588291200000000000",
        "1.5882912e9",
    ] {
        check(cell, at_s);
    }
    for endless in ["2020-05-01 ", "01.05.2020 "] {
        let told = super::error(&format!("time,gpus\n{endless}{},1\n", "+ ".repeat(1 << 18)));
        assert!(told.contains("is not a time"), "{told}");
    }
    let told = super::error("time,gpus\n05/01/2020 00:00,1\n");
    assert!(told.contains("the day or the month may come first"), "{told}");
}

#[test]
fn clocks_are_set_back_and_forth() {
    let berlin =
        Args { time_zone: Some(crate::trace::value::zone("Europe/Berlin").unwrap()), ..Args::default() };
    // Each hour from 0:00 to 4:00 of summer's end, 2:00 twice.
    let text = "time,gpus\n2026-10-25 00:00,1\n2026-10-25 01:00,2\n2026-10-25 02:00,3\n2026-10-25 02:00,4\n2026-10-25 03:00,5\n";
    let (samples, warnings) = demand_of(&berlin, &[text.as_bytes()]).unwrap();
    let begin_s = 1_792_879_200.0;
    let hours: Vec<f64> = samples.iter().map(|(at_s, _)| (at_s - begin_s) / 3600.0).collect();
    assert_eq!((hours, warnings), (vec![0.0, 1.0, 2.0, 3.0, 4.0], Warnings::default()));
    // A job that ends before it began by the clock.
    let text = b"submit,end,gpus\n2026-10-25 02:50,2026-10-25 02:10,1\n2026-03-29 01:30,2026-03-29 03:30,1\n";
    let (found, warnings) = jobs_of(&berlin, &[text]).unwrap();
    assert_eq!(found.iter().map(|job| job.duration_s).collect::<Vec<_>>(), [3600.0, 1200.0]);
    assert_eq!(warnings.count(Kind::OutOfOrder), 1);
    assert!(crate::trace::value::zone("Europe/Nowhere").unwrap_err().contains("+08:00"));
    assert!(crate::trace::value::zone("x/../../etc/passwd").is_err());
    assert_eq!(crate::trace::value::zone("+08:00"), Ok(jiff::tz::TimeZone::fixed(jiff::tz::offset(8))));
}

#[test]
fn text_in_utf_16_is_read() {
    let text = "submit\tduration\tgpus\towner\r\n0\t60\t4\tf\u{fc}r \u{1f600}\r\n";
    for (bom, bytes) in
        [([0xff, 0xfe], u16::to_le_bytes as fn(u16) -> [u8; 2]), ([0xfe, 0xff], u16::to_be_bytes)]
    {
        let encoded: Vec<u8> = bom.into_iter().chain(text.encode_utf16().flat_map(bytes)).collect();
        let (jobs, warnings) = jobs_of(&Args::default(), &[&encoded]).unwrap();
        assert_eq!((jobs.len(), &*jobs[0].owner, warnings), (1, "f\u{fc}r \u{1f600}", Warnings::default()));
        let packed =
            ruzstd::encoding::compress_to_vec(&*encoded, ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(jobs_of(&Args::default(), &[&packed]).unwrap().0, jobs);
        // Cut in the midst of a character.
        assert!(jobs_of(&Args::default(), &[&encoded[..encoded.len() - 7]]).is_ok());
    }
}
