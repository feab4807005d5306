-- +goose Up

-- What a worker may use, where its forging asked for other limits than its
-- type's; 0 where it did not.
ALTER TABLE workers ADD COLUMN memory_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN cpu_millis INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN pids INTEGER NOT NULL DEFAULT 0;
