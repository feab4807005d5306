// Package sqlcgen holds the registry's queries as sqlc writes them from
// ../queries and ../migrations. It belongs to package registry: nothing else
// imports it. `make generate` writes every file but this one.
package sqlcgen
