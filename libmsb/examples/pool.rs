//! A pool: sandboxes that are ready before a task needs one, made from one snapshot.
//!
//! ```text
//! cargo run --example pool -- alpine
//! ```

use std::collections::VecDeque;
use std::thread::JoinHandle;

use libmsb::sdk::{Code, Error, Sandbox, Snapshot, SnapshotOptions};

const SNAPSHOT: &str = "example-pool";

/// Sandboxes that are ready, or will be.
struct Pool {
    ready: VecDeque<JoinHandle<Result<Sandbox, Error>>>,
    count: usize,
}

impl Pool {
    fn new(size: usize) -> Pool {
        let mut pool = Pool { ready: VecDeque::new(), count: 0 };
        (0..size).for_each(|_| pool.add());
        pool
    }

    fn add(&mut self) {
        let name = format!("example-pool-{}", self.count);
        self.count += 1;
        let create = move || Sandbox::builder(name).from_snapshot(SNAPSHOT).create();
        self.ready.push_back(std::thread::spawn(create));
    }

    /// Takes a sandbox, and has the next one made.
    fn take(&mut self) -> Result<Sandbox, Error> {
        self.add();
        let ready = self.ready.pop_front().and_then(|made| made.join().ok());
        ready.unwrap_or_else(|| Err(Error::new(Code::Internal, "no sandbox was made")))
    }
}

fn main() -> Result<(), Error> {
    let image = std::env::args().nth(1).unwrap_or("alpine".to_owned());
    for line in tasks(&image, 3)? {
        println!("{line}");
    }
    Ok(())
}

/// Runs tasks by a pool of two, each in a sandbox of its own. Returns their output.
pub(crate) fn tasks(image: &str, count: usize) -> Result<Vec<String>, Error> {
    let setup = Sandbox::builder("example-pool-setup").image(image).create()?;
    setup.fs().write("/root/task", "echo task $1 > /root/done; cat /root/done")?;
    setup.stop()?;
    let options = SnapshotOptions { force: true, ..SnapshotOptions::default() };
    let snapshot = setup.snapshot_to(SNAPSHOT, &options)?;
    setup.remove()?;
    let mut pool = Pool::new(2);
    let mut lines = Vec::new();
    for number in 0..count {
        let sandbox = pool.take()?;
        let output = sandbox.exec(["sh", "/root/task", &number.to_string()])?;
        lines.push(output.stdout_text().trim().to_owned());
        discard(&sandbox)?;
    }
    for made in pool.ready {
        if let Ok(Ok(sandbox)) = made.join() {
            discard(&sandbox)?;
        }
    }
    Snapshot::get(&snapshot.digest)?.remove(false)?;
    Ok(lines)
}

fn discard(sandbox: &Sandbox) -> Result<(), Error> {
    sandbox.kill()?;
    sandbox.remove()
}
