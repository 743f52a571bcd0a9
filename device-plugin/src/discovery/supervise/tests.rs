use std::sync::{Arc, atomic::AtomicUsize};

use super::*;
use crate::{device::Health, inventory::tests::device};

/// Quick enough for a test, slow enough that a busy machine hangs no thread by accident.
const QUICK: Patience = Patience {
    silent: Duration::from_millis(120),
    hanging: Duration::from_mins(10),
    restart: (Duration::from_millis(5), Duration::from_millis(20)),
};

type Script = dyn Fn(usize, &Reporter) + Send + Sync;

/// A back end whose every life is told by its number.
struct Scripted {
    lives: Arc<AtomicUsize>,
    script: Arc<Script>,
}

impl Scripted {
    fn new(script: impl Fn(usize, &Reporter) + Send + Sync + 'static) -> Self {
        Self { lives: Arc::default(), script: Arc::new(script) }
    }
}

impl Backend for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn again(&self) -> Box<dyn Backend> {
        Box::new(Self { lives: self.lives.clone(), script: self.script.clone() })
    }

    fn run(self: Box<Self>, reporter: &Reporter) {
        let life = self.lives.fetch_add(1, Ordering::SeqCst);
        (self.script)(life, reporter);
    }
}

fn gpu(id: &str) -> Vec<crate::device::Device> {
    vec![device("nvidia.com/gpu", id, None)]
}

fn sick(now: &Inventory) -> bool {
    now.devices().any(|device| !device.health.is_healthy())
}

/// Runs the back end beside `scenario`.
async fn play(patience: Patience, backend: Scripted, scenario: impl AsyncFnOnce(watch::Receiver<Inventory>)) {
    let inventory = watch::Sender::new(Inventory::starting(["scripted"]));
    let stop = CancellationToken::new();
    let seen = inventory.subscribe();
    let running = supervise_with(patience, Box::new(backend), inventory, stop.clone());
    let looking = async {
        scenario(seen).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(running, looking);
    ended.unwrap();
}

fn wait_for_stop(reporter: &Reporter) {
    while !reporter.stopping() {
        reporter.pause(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn what_was_found_is_unhealthy_while_the_back_end_cannot_look() {
    let backend = Scripted::new(|_, reporter| {
        reporter.devices(gpu("GPU-1"));
        reporter.unavailable("driver gone");
        wait_for_stop(reporter);
    });
    play(PATIENCE, backend, async |mut seen| {
        let last = seen.wait_for(sick).await.unwrap().clone();
        assert_eq!(
            last.backends().collect::<Vec<_>>(),
            [("scripted", &BackendState::Unavailable("driver gone".to_owned()))]
        );
    })
    .await;
}

#[tokio::test]
async fn a_back_end_that_panics_is_started_again_and_its_devices_are_unhealthy_meanwhile() {
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let may_go_on = Mutex::new(may_go_on);
    let backend = Scripted::new(move |life, reporter| match life {
        0 => {
            reporter.devices(gpu("GPU-1"));
            panic!("a bug");
        }
        // It dies before it has looked, too.
        1 => panic!("the same bug"),
        _ => {
            let _ = may_go_on.lock().unwrap().recv();
            reporter.devices(gpu("GPU-1"));
            wait_for_stop(reporter);
        }
    });
    play(QUICK, backend, async |mut seen| {
        // Printing a panic may take so long that it is called silent first.
        let why = Health::Unhealthy("the scripted back end died; it is started again".to_owned());
        seen.wait_for(|now| now.devices().any(|device| device.health == why)).await.unwrap();
        go_on.send(()).unwrap();
        seen.wait_for(|now| !sick(now)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_back_end_that_hangs_makes_its_devices_unhealthy_until_it_speaks() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let backend = Scripted::new(move |_, reporter| {
        reporter.devices(gpu("GPU-1"));
        let _ = released.lock().unwrap().recv();
        reporter.devices(gpu("GPU-1"));
        wait_for_stop(reporter);
    });
    play(QUICK, backend, async |mut seen| {
        seen.wait_for(sick).await.unwrap();
        release.send(()).unwrap();
        seen.wait_for(|now| !sick(now)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn one_that_hangs_on_is_replaced_and_not_heard_any_more() {
    let patience = Patience { hanging: Duration::from_millis(200), ..QUICK };
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (told, tell) = std::sync::mpsc::channel::<bool>();
    let (released, told) = (Mutex::new(released), Mutex::new(told));
    let backend = Scripted::new(move |life, reporter| {
        if life == 0 {
            reporter.devices(gpu("GPU-old"));
            let _ = released.lock().unwrap().recv();
            reporter.devices(gpu("GPU-from-the-grave"));
            reporter.labels([("from".to_owned(), "the-grave".to_owned())].into());
            let _ = told.lock().unwrap().send(reporter.stopping());
        } else {
            reporter.devices(gpu("GPU-new"));
            wait_for_stop(reporter);
        }
    });
    play(patience, backend, async |mut seen| {
        let is = |now: &Inventory, id: &str| now.devices().any(|device| device.id.as_str() == id);
        seen.wait_for(|now| is(now, "GPU-new")).await.unwrap();
        release.send(()).unwrap();
        let stopping = tokio::task::spawn_blocking(move || tell.recv()).await.unwrap().unwrap();
        assert!(stopping, "it was not told to end");
        let now = seen.borrow_and_update().clone();
        assert!(is(&now, "GPU-new") && !is(&now, "GPU-from-the-grave"), "{now:?}");
        assert!(now.labels().is_empty());
    })
    .await;
}

#[tokio::test]
async fn no_more_than_a_few_threads_hang() {
    let patience =
        Patience { silent: Duration::from_millis(12), hanging: Duration::from_millis(15), ..QUICK };
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let (started, lives) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen_lives = lives.clone();
    let backend = Scripted::new(move |life, reporter| {
        lives.fetch_max(life + 1, Ordering::SeqCst);
        if life < HANGING_AT_MOST {
            started.fetch_add(1, Ordering::SeqCst);
            let _ = released.lock().unwrap().recv();
        } else {
            reporter.devices(gpu("GPU-1"));
            wait_for_stop(reporter);
        }
    });
    play(patience, backend, async |mut seen| {
        while seen_lives.load(Ordering::SeqCst) < HANGING_AT_MOST {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(seen_lives.load(Ordering::SeqCst), HANGING_AT_MOST, "one more was started");
        // As soon as one of them comes back there is room for another.
        release.send(()).unwrap();
        seen.wait_for(|now| now.devices().count() == 1).await.unwrap();
    })
    .await;
}
