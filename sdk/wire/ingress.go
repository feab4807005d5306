package wire

// IngressVerb makes the kind of the task that answers requests from outside, after
// the type's name.
const IngressVerb = ".ingress"

// IngressRequest is the payload of such a task.
type IngressRequest struct {
	Method string              `json:"method"`
	Path   string              `json:"path"` // below /in/
	Query  string              `json:"query"`
	Header map[string][]string `json:"header"`
	Peer   string              `json:"peer"` // the address of who asked
	Body   []byte              `json:"body"` // base64
}

// IngressAnswer is its output.
type IngressAnswer struct {
	Status int    `json:"status"` // 200 to 299, or 400 to 599
	JSON   bool   `json:"json"`   // the body is a JSON document; else it is bytes
	Body   []byte `json:"body"`   // base64
}
