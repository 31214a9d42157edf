//! Schedules against what each sequence would say alone.
