//! Links inside one process.
