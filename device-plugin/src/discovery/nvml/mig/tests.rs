use super::*;

fn profile(name: &str) -> Profile {
    Profile::parse(name).expect("a sound profile")
}

fn on(profiles: &[&str]) -> Mig {
    let instance = |(number, name): (usize, &&str)| Instance {
        id: DeviceId::new(format!("MIG-{number}")).unwrap(),
        index: u32::try_from(number).unwrap(),
        gi: u32::try_from(number).unwrap() + 1,
        ci: 0,
        profile: profile(name),
        attributes: None,
    };
    Mig::On(profiles.iter().enumerate().map(instance).collect())
}

/// The resources that are offered, and what is wrong.
fn offered(strategy: MigStrategy, gpus: &[Mig]) -> (Vec<String>, Option<String>) {
    let (offers, wrong) = offers(strategy, &gpus.iter().collect::<Vec<_>>());
    let spell = |offer: Offer| match offer.instance {
        None => format!("{} {}", offer.gpu, offer.resource),
        Some(instance) => format!("{}:{instance} {}", offer.gpu, offer.resource),
    };
    (offers.into_iter().map(spell).collect(), wrong)
}

#[test]
fn profiles_are_spelled_as_nvidia_does() {
    for name in
        ["1g.5gb", "7g.80gb", "1c.2g.10gb", "1g.5gb+me", "1g.24gb-me", "1g.24gb+me.all", "2g.48gb+gfx"]
    {
        assert_eq!(profile(name).to_string(), name);
    }
    assert_eq!(profile("1g.5gb+me").name(), "1g.5gb.me");
    assert_eq!(profile("1g.5gb+me").resource().unwrap().as_str(), "nvidia.com/mig-1g.5gb.me");
    assert!(profile("2c.2g.10gb").is_whole() && !profile("1c.2g.10gb").is_whole());
    let hostile = [
        "",
        "g.gb",
        "1g",
        "5gb",
        "0g.5gb",
        "01g.5gb",
        "1g.5gb+",
        "1g.5GB",
        "1g.5gb+ME",
        "1g.5gb/../..",
        "1g.5gb+me/x",
        "1c.1c.1g.5gb",
        "99999999999g.5gb",
        "1g.5gb+aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "\u{663}g.5gb",
    ];
    for name in hostile {
        assert_eq!(Profile::parse(name), None, "{name:?}");
    }
    assert_eq!(Profile::of_name("NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb"), Some(profile("1c.3g.20gb")));
    assert_eq!(Profile::of_name("NVIDIA A100-SXM4-40GB"), None);
}

#[test]
fn a_profile_without_name_has_the_one_of_its_size() {
    // An A100 of 40 GB, and an H100 of 80 GB: what their drivers say of memory, and the profiles in NVIDIA's user guide.
    for (slices, mib, gpu_mib, name) in [
        ((1, 1), 4864, 40960, "1g.5gb"),
        ((2, 2), 9856, 40960, "2g.10gb"),
        ((3, 3), 19968, 40960, "3g.20gb"),
        ((7, 7), 40192, 40960, "7g.40gb"),
        ((2, 1), 9856, 40960, "1c.2g.10gb"),
        ((1, 1), 9984, 81559, "1g.10gb"),
        ((1, 1), 20096, 81559, "1g.20gb"),
    ] {
        let found = Profile::of_size(slices.0, slices.1, mib, gpu_mib);
        assert_eq!(found.map(|profile| profile.to_string()).as_deref(), Some(name));
    }
    assert_eq!(Profile::of_size(1, 1, 100, 0), None);
    assert_eq!(Profile::of_size(0, 0, u64::MAX, 1), None);
}

#[test]
fn without_a_strategy_a_gpu_is_a_gpu() {
    let gpus = [Mig::Incapable, Mig::Off, on(&["1g.5gb"]), on(&[])];
    let all: Vec<_> = (0..4).map(|gpu| format!("{gpu} nvidia.com/gpu")).collect();
    assert_eq!(offered(MigStrategy::None, &gpus), (all, None));
}

#[test]
fn mixed_offers_a_resource_a_profile() {
    let gpus = [Mig::Off, on(&["3g.20gb", "1g.5gb+me", "1c.2g.10gb", "2g.10gb"]), on(&[])];
    let expected = [
        "0 nvidia.com/gpu",
        "1:0 nvidia.com/mig-3g.20gb",
        "1:1 nvidia.com/mig-1g.5gb.me",
        "1:3 nvidia.com/mig-2g.10gb",
    ];
    assert_eq!(offered(MigStrategy::Mixed, &gpus), (expected.map(str::to_owned).to_vec(), None));
}

#[test]
fn single_offers_equal_partitions_as_gpus_and_says_why_not() {
    let equal = [on(&["1g.5gb", "1g.5gb"]), on(&["1g.5gb"])];
    let expected = ["0:0 nvidia.com/gpu", "0:1 nvidia.com/gpu", "1:0 nvidia.com/gpu"];
    assert_eq!(offered(MigStrategy::Single, &equal), (expected.map(str::to_owned).to_vec(), None));
    assert_eq!(offered(MigStrategy::Single, &[Mig::Off]), (vec!["0 nvidia.com/gpu".to_owned()], None));

    let wrong = |gpus: &[Mig], part: &str| {
        let (offers, wrong) = offered(MigStrategy::Single, gpus);
        assert!(wrong.as_ref().is_some_and(|wrong| wrong.contains(part)), "{wrong:?} lacks {part:?}");
        offers
    };
    wrong(&[on(&["1g.5gb", "2g.10gb"])], "1g.5gb, 2g.10gb");
    wrong(&[on(&["1g.5gb"]), Mig::Off], "1 of 2 GPUs");
    // The GPU itself is there to say so.
    assert_eq!(wrong(&[on(&[])], "no MIG device"), ["0 nvidia.com/gpu"]);
}

#[test]
fn capability_nodes_are_what_the_driver_says() {
    let folder = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let nodes = || capability_nodes(folder.path(), 0, 7, 0);
    assert!(nodes().unwrap_err().contains("gi7 of GPU 0"));

    put(
        "driver/nvidia-caps/mig-minors",
        "config 1\nmonitor 2\ngpu0/gi7/access 66\ngpu0/gi7/ci0/access 67\ngpu0/gi77/access 9\n",
    );
    assert_eq!(nodes().unwrap(), ["nvidia-caps/nvidia-cap66", "nvidia-caps/nvidia-cap67"]);

    let gpu = "driver/nvidia/capabilities/gpu0/mig/gi7";
    put(&format!("{gpu}/access"), "DeviceFileMinor: 21\nDeviceFileMode: 256\nDeviceFileModify: 1\n");
    put(&format!("{gpu}/ci0/access"), "DeviceFileMinor: 22\nDeviceFileMode: 256\nDeviceFileModify: 1\n");
    assert_eq!(nodes().unwrap(), ["nvidia-caps/nvidia-cap21", "nvidia-caps/nvidia-cap22"]);

    // Nonsense is no number, so the other source counts.
    put(&format!("{gpu}/access"), "DeviceFileMinor: ../../sda\n");
    assert_eq!(nodes().unwrap()[0], "nvidia-caps/nvidia-cap66");
}
