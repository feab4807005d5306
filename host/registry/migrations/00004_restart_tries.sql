-- +goose Up

-- How often the worker was started again since it was last healthy: who crashes in
-- a loop does not begin anew with the next host.
ALTER TABLE workers ADD COLUMN restart_tries INTEGER NOT NULL DEFAULT 0;
