//! The shipped log, `triune-storage`'s [`Wal`], as a driver's log.

use std::sync::Arc;

use triune_storage::{Entry, Index, ReadError, StreamBatch, StreamId, Wal, WalError, WalReader};

use super::log::{DriverLog, LogError, LogRead, LogWrite, Space};

impl From<Wal> for DriverLog {
    fn from(wal: Wal) -> Self {
        let reader = Box::new(wal.reader());
        Self { writer: Box::new(WalWriter { wal: Some(wal) }), reader }
    }
}

/// The log until it is closed.
struct WalWriter {
    wal: Option<Wal>,
}

impl LogWrite for WalWriter {
    fn commit(&mut self, batches: &[StreamBatch], space: Space) -> Result<(), LogError> {
        let wal = self.wal.as_mut().ok_or_else(|| failed(WalError::Poisoned))?;
        let appended = match space {
            Space::Ordinary => wal.append(batches),
            Space::Reserve => wal.append_reserved(batches),
        };
        appended.and_then(|_| wal.sync()).map_err(failed)
    }

    fn release(&mut self, stream: StreamId, upto: Index) -> Result<(), LogError> {
        if let Some(wal) = &mut self.wal {
            wal.release(stream, upto);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), LogError> {
        self.wal.take().map_or(Ok(()), Wal::close).map_err(failed)
    }
}

impl LogRead for WalReader {
    fn entries(
        &mut self,
        stream: StreamId,
        first: Index,
        last: Index,
        bytes_max: usize,
    ) -> Result<Option<Vec<Entry>>, LogError> {
        match self.read(stream, first..=last, bytes_max) {
            Ok(entries) => Ok((!entries.is_empty()).then_some(entries)),
            Err(ReadError::Released { .. } | ReadError::Absent { .. }) => Ok(None),
            Err(error @ ReadError::Faulty { .. }) => Err(LogError::Faulty(Arc::new(error))),
            Err(error) => Err(LogError::Failed(Arc::new(error))),
        }
    }
}

fn failed(error: WalError) -> LogError {
    match error {
        WalError::NoSpace => LogError::NoSpace,
        error => LogError::Failed(Arc::new(error)),
    }
}
