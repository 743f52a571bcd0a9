use tempfile::TempDir;

use super::*;

fn write(root: &TempDir, path: &str, text: &str) {
    let path = root.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn v1(root: &TempDir) -> Reader {
    let mounts = ["cpu,cpuacct", "memory", "pids", "blkio"]
        .map(|name| format!("31 30 0:29 / {}/{name} rw - cgroup cgroup rw,{name}\n", root.path().display()));
    let mounts = mounts.concat();
    let both = format!("{mounts}40 30 0:38 / {}/unified rw - cgroup2 cgroup2 rw\n", root.path().display());
    Reader { devices: root.path().join("devices"), ..Reader::find(&both).unwrap() }
}

fn v2(root: &TempDir) -> Reader {
    let mounts = format!("40 30 0:38 / {}/unified rw,nosuid - cgroup2 cgroup2 rw\n", root.path().display());
    Reader { devices: root.path().join("devices"), ..Reader::find(&mounts).unwrap() }
}

#[test]
fn version_1_is_read() {
    let root = tempfile::tempdir().unwrap();
    write(&root, "cpu,cpuacct/pod1/cpuacct.usage", "123456789\n");
    write(&root, "cpu,cpuacct/pod1/cpuacct.stat", "user 7\nsystem 5\n");
    write(&root, "cpu,cpuacct/pod1/cpu.stat", "nr_periods 10\nnr_throttled 3\nthrottled_time 400\n");
    write(&root, "cpu,cpuacct/pod1/cpu.shares", "512\n");
    write(&root, "cpu,cpuacct/pod1/cpu.cfs_quota_us", "-1\n");
    write(&root, "cpu,cpuacct/pod1/cpu.cfs_period_us", "100000\n");
    write(&root, "memory/pod1/memory.usage_in_bytes", "1000\n");
    write(&root, "memory/pod1/memory.limit_in_bytes", "9223372036854771712\n");
    write(&root, "memory/pod1/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
    let stat =
        "cache 1\ntotal_cache 300\ntotal_rss 600\ntotal_inactive_file 250\ntotal_pgfault 9\ntotal_swap 8\n";
    write(&root, "memory/pod1/memory.stat", stat);
    write(&root, "memory/pod1/cgroup.procs", "0\n17\n18\n");
    write(&root, "memory/pod1/child/cgroup.procs", "");
    write(&root, "pids/pod1/pids.current", "4\n");
    write(&root, "pids/pod1/pids.max", "max\n");
    write(
        &root,
        "blkio/pod1/blkio.throttle.io_service_bytes_recursive",
        "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n../..:1 Read 5\nTotal 30\n",
    );
    write(&root, "blkio/pod1/blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\n");
    write(&root, "devices/8:0/uevent", "MAJOR=8\nDEVNAME=sda\n");

    let reader = v1(&root);
    let usage = reader.read("/pod1", Timestamp::UNIX_EPOCH).unwrap();
    let cpu = usage.cpu.unwrap();
    assert_eq!((cpu.total_ns, cpu.user_ns, cpu.system_ns), (123_456_789, Some(70_000_000), Some(50_000_000)));
    assert_eq!((cpu.shares, cpu.quota_us), (Some(512), None));
    let throttling = Throttling { periods: 10, throttled_periods: 3, throttled_ns: 400 };
    assert_eq!(cpu.throttling, Some(throttling));
    let memory = usage.memory.unwrap();
    assert_eq!((memory.usage, memory.working_set, memory.rss), (1000, 750, Some(600)));
    assert_eq!((memory.limit, memory.oom_kills, memory.faults), (None, Some(2), Some(9)));
    assert_eq!((usage.swap, usage.processes, usage.threads), (Some(8), Some(3), Some(4)));
    assert_eq!(usage.max_threads, None);
    assert_eq!(
        usage.disks[0],
        Disk { device: "/dev/sda".to_owned(), read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 }
    );
    assert_eq!(usage.disks[1].device, "../..:1", "no path is made of it");
    assert_eq!(usage.pressure, None, "that is version 2's");
    assert_eq!(reader.process("pod1"), Some(17), "0 is a process that we can't see");
    assert_eq!(reader.children("pod1"), ["child"]);
}

#[test]
fn version_2_is_read() {
    let root = tempfile::tempdir().unwrap();
    let put = |file: &str, text: &str| write(&root, &format!("unified/a/pod1/{file}"), text);
    put(
        "cpu.stat",
        "usage_usec 12\nuser_usec 7\nsystem_usec 5\nnr_periods 1\nnr_throttled 0\nthrottled_usec 3\n",
    );
    put("cpu.max", "50000 100000\n");
    put("cpu.weight", "100\n");
    put("memory.current", "1000\n");
    put("memory.max", "4096\n");
    put("memory.stat", "anon 500\nfile 400\nkernel 100\ninactive_file 300\npgfault 9\npgmajfault 1\n");
    put("memory.events", "low 0\nmax 5\noom 1\noom_kill 1\n");
    put("memory.swap.current", "0\n");
    put("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1 \n");
    put("cpu.pressure", "some avg10=0.50 avg60=NaN avg300=inf total=77\n");
    put("memory.pressure", "some avg10=0 total=1\nfull avg10=12.25 avg60=0 avg300=0 total=5\n");
    put("io.pressure", "garbage");
    let reader = v2(&root);
    let usage = reader.read("a/pod1", Timestamp::UNIX_EPOCH).unwrap();
    let cpu = usage.cpu.unwrap();
    assert_eq!((cpu.total_ns, cpu.shares, cpu.quota_us), (12_000, Some(2597), Some((50_000, 100_000))));
    assert_eq!(cpu.throttling.unwrap().throttled_ns, 3000);
    let memory = usage.memory.unwrap();
    assert_eq!((memory.working_set, memory.limit, memory.limit_hits), (700, Some(4096), Some(5)));
    assert_eq!(usage.swap, Some(0));
    let disk = Disk { device: "8:0".to_owned(), read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 };
    assert_eq!(usage.disks, [disk]);
    let [cpu, memory, io] = usage.pressure.unwrap();
    assert_eq!(cpu.some, Stall { total_us: 77, average: [0.5, 0.0, 0.0] });
    assert!((memory.full.average[0] - 12.25).abs() < 1e-9);
    assert_eq!(io, Pressure::default());
    assert_eq!(usage.path, "/a/pod1");
}

#[test]
fn what_is_missing_or_no_number_is_not_told() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(v1(&root).read("pod1", Timestamp::UNIX_EPOCH), None);
    write(&root, "memory/pod1/memory.usage_in_bytes", "a lot\n");
    let usage = v1(&root).read("pod1", Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!((usage.cpu, usage.memory), (None, None));
    assert_eq!(Reader::find("31 30 0:29 / /x rw - tmpfs tmpfs rw\n"), None);
    assert_eq!(Reader::find(""), None);
}
