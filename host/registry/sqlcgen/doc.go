// Package sqlcgen holds the registry's queries as sqlc writes them from
// ../queries and ../migrations. It belongs to package registry: nothing else
// imports it. Everything but this file is generated (`make generate`).
package sqlcgen
