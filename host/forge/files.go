package forge

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/identity"
	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/vault"
)

// file is one file or folder of a worker. The steps write the lists below; a plan
// tells them, with no data where that is known only when it is made.
type file struct {
	path   string // a folder's ends in /
	access stage.Access
	data   []byte
}

func (f file) isFolder() bool { return strings.HasSuffix(f.path, "/") }

// workerKey is the file that nobody but the worker may read.
const workerKey = "certs/worker.key"

const workerCert = "certs/worker.pem"

// folders are a worker's folders, its own first.
func folders(w worker.Worker) []file {
	all := []file{
		{path: "./", access: hostOwned(w, 0o750)},
		{path: "certs/", access: hostOwned(w, 0o750)},
		{path: "vault/", access: hostOwned(w, 0o750)},
		{path: launch.StateDir + "/", access: workerOwned(w, 0o700)},
		{path: launch.RunDir + "/", access: workerOwned(w, 0o700)},
		{path: launch.LogsDir + "/", access: stage.Access{Mode: 0o700}},
	}
	if len(w.Grants) > 0 { // one that has folders alone makes nothing of it
		all = append(all, file{path: manifest.DoorDir + "/", access: hostOwned(w, 0o750)})
	}
	if HasEgress(w) {
		all = append(all, file{path: launch.EtcDir + "/", access: hostOwned(w, 0o750)})
	}
	return all
}

// HasEgress says whether a worker was granted any, and so has names of its own to
// look up.
func HasEgress(w worker.Worker) bool {
	granted, _ := capability.Set(w.Grants) // they were checked
	return slices.ContainsFunc(granted, func(c capability.Capability) bool { return c.Kind == capability.Egress })
}

// keyFiles are the worker's key, its certificate, and that of the host's CA.
func (f *Forge) keyFiles(w worker.Worker, keyPEM, certPEM []byte) []file {
	return []file{
		{workerKey, workerOwned(w, 0o600), keyPEM},
		told(w, workerCert, certPEM),
		told(w, "certs/ca.pem", f.Authority.CertPEM()),
	}
}

// injected are the files that tell the worker who it is, how it is configured,
// and what the record looked like when it was made.
func injected(w worker.Worker, identityJSON, accountability, reflection []byte) []file {
	files := []file{
		told(w, identity.File, identityJSON),
		told(w, "config.json", w.Config),
		told(w, vault.AccountabilityFile, accountability),
		told(w, vault.ReflectionFile, reflection),
	}
	if HasEgress(w) {
		granted, _ := capability.Set(w.Grants) // they were checked
		files = append(files, told(w, launch.EtcDir+"/hosts", capability.Hosts(granted)),
			told(w, launch.EtcDir+"/nsswitch.conf", []byte(capability.NameService)))
	}
	return files
}

// seals are the manifest and the host's signature over it.
func seals(w worker.Worker, encoded, signature []byte) []file {
	return []file{told(w, manifest.File, encoded), told(w, manifest.SignatureFile, signature)}
}

// told is a file that the worker reads and nobody changes.
func told(w worker.Worker, path string, data []byte) file {
	return file{path, hostOwned(w, manifest.FileMode), data}
}

// hostOwned is for what only the host may write and the worker's group, which
// is its own, may read.
func hostOwned(w worker.Worker, mode fs.FileMode) stage.Access {
	return stage.Access{Mode: mode, GID: w.UID}
}

func workerOwned(w worker.Worker, mode fs.FileMode) stage.Access {
	return stage.Access{Mode: mode, UID: w.UID, GID: w.UID}
}

// lay puts files and folders into the stage.
func (j *job) lay(files []file) error { return lay(j.folder, files) }

func lay(folder *stage.Stage, files []file) error {
	for _, file := range files {
		var err error
		switch {
		case file.isFolder():
			err = folder.Mkdir(strings.TrimSuffix(file.path, "/"), file.access)
		case file.data == nil:
			err = fmt.Errorf("write %s: it has no text", file.path)
		default:
			err = folder.WriteFile(file.path, file.data, file.access)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// names lists files in one line.
func names(files []file) string {
	all := make([]string, len(files))
	for i, f := range files {
		all[i] = f.path
	}
	return strings.Join(all, ", ")
}
