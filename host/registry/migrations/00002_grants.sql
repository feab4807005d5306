-- +goose Up

-- What a worker may do beyond its own folder: capabilities, each after a space.
ALTER TABLE workers ADD COLUMN grants TEXT NOT NULL DEFAULT '';
