//! Lines of the access log: one JSON object for each record.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};

use super::{AccessLog, Metrics};
use crate::proxy::AccessRecord;

/// Records that are written together, at most.
const BATCH: usize = 256;

pub(super) type Writer = BufWriter<Box<dyn Write + Send>>;

/// Opens what lines are written to.
pub(super) fn open(target: &AccessLog) -> io::Result<Writer> {
    let writer: Box<dyn Write + Send> = match target {
        AccessLog::Stdout => Box::new(io::stdout()),
        AccessLog::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
    };
    Ok(BufWriter::new(writer))
}

/// Writes until it is told to stop, and then what is left.
pub(super) fn run(
    mut writer: Writer,
    mut records: mpsc::Receiver<Arc<AccessRecord>>,
    mut stop: oneshot::Receiver<()>,
    metrics: &Metrics,
) {
    let runtime = match Builder::new_current_thread().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "no access log is written"),
    };
    runtime.block_on(async {
        let mut batch = Vec::with_capacity(BATCH);
        let mut stopped = false;
        loop {
            tokio::select! {
                count = records.recv_many(&mut batch, BATCH) => if count == 0 {
                    return;
                },
                _ = &mut stop, if !stopped => {
                    stopped = true;
                    records.close();
                    continue;
                }
            }
            let count = batch.len() as u64;
            match write(&mut writer, &batch) {
                Ok(()) => metrics.lines("written", count),
                Err(error) => {
                    tracing::warn!(%error, lines = count, "failed to write the access log");
                    metrics.lines("failed", count);
                }
            }
            batch.clear();
        }
    });
}

fn write(writer: &mut Writer, batch: &[Arc<AccessRecord>]) -> io::Result<()> {
    for record in batch {
        serde_json::to_writer(&mut *writer, &**record)?;
        writer.write_all(b"\n")?;
    }
    writer.flush()
}
