//! Pods that come and go while others talk.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Error, cpu, spec::PathSpec, stage};
use crate::{state::Roots, text::with_causes};

/// How often it is looked whether something is to be done.
const PAUSE: Duration = Duration::from_millis(1);

/// A thread that adds a pod to a path and takes it away again, over and over, while it is told to.
pub(super) struct Churn {
    is_on: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    /// Held while a pod comes or goes, so that nobody else is measured meanwhile.
    working: Arc<Mutex<()>>,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

/// While this lives, pods come and go.
pub(super) struct Churning<'a>(&'a Churn);

impl Churn {
    /// For a path that is up.
    pub(super) fn new(roots: &Roots, spec: &PathSpec, number: u8) -> Self {
        let (is_on, is_over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let working = Arc::<Mutex<()>>::default();
        let (roots, spec) = (roots.clone(), *spec);
        let told = (Arc::clone(&is_on), Arc::clone(&is_over), Arc::clone(&working));
        let thread = thread::spawn(move || work(&roots, &spec, number, &told));
        Self { is_on, is_over, working, thread: Some(thread) }
    }

    /// Lets it begin. Ends when what is returned goes, and no pod is half-way then.
    pub(super) fn begin(&self) -> Churning<'_> {
        self.is_on.store(true, Ordering::Relaxed);
        Churning(self)
    }
}

impl Drop for Churning<'_> {
    fn drop(&mut self) {
        self.0.is_on.store(false, Ordering::Relaxed);
        drop(lock(&self.0.working));
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Ok(Err(error))) = ended {
            log::warn!("pods did not come and go to the end: {}", with_causes(&error));
        }
    }
}

fn work(
    roots: &Roots,
    spec: &PathSpec,
    number: u8,
    (is_on, is_over, working): &(Arc<AtomicBool>, Arc<AtomicBool>, Arc<Mutex<()>>),
) -> Result<(), Error> {
    // Not on the last CPU, where the others are measured.
    if let Some(cpu) = cpu::allowed().map_err(Error::Accounting)?.first() {
        cpu::pin(*cpu).map_err(Error::Accounting)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::Accounting)?;
    let texts = [spec.pods + 1, spec.pods].map(|pods| stage::declaration(spec, number, pods));
    let mut next = texts.iter().cycle();
    while !is_over.load(Ordering::Relaxed) {
        if is_on.load(Ordering::Relaxed) {
            let _working = lock(working);
            if let Some(text) = next.next() {
                runtime.block_on(stage::bring_up(roots, text))?;
            }
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn lock(working: &Mutex<()>) -> MutexGuard<'_, ()> {
    working.lock().unwrap_or_else(PoisonError::into_inner)
}
