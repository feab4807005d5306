package sdk

import (
	"sync"

	"google.golang.org/protobuf/proto"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// How much may wait for a host that does not read.
const (
	maxWaiting      = 1024
	maxWaitingBytes = 16 << 20 // of frames; kept results wait on disk
)

// outbox is what one Exchange still has to send. Whoever puts something in never
// waits for who takes it out. A nil outbox is one that nobody reads.
type outbox struct {
	wake     chan struct{} // holds one token when there is something to see
	replaced chan struct{} // closed when a newer Exchange has come

	mu      sync.Mutex
	items   []item
	bytes   int // of frames
	closing bool
}

// item is a frame, or a kept result that is read from disk when its turn comes.
type item struct {
	frame *workerv1.ExchangeResponse
	kept  attempt
}

func newOutbox() *outbox {
	return &outbox{wake: make(chan struct{}, 1), replaced: make(chan struct{})}
}

// push adds i, or says that there is no room for it.
func (o *outbox) push(i item) bool {
	if o == nil {
		return true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	size := proto.Size(i.frame)
	if len(o.items) >= maxWaiting || o.bytes+size > maxWaitingBytes {
		return false
	}
	o.items = append(o.items, i)
	o.bytes += size
	o.signal()
	return true
}

// pop takes the next item. closed says that there will be no more.
func (o *outbox) pop() (i item, ok, closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.items) == 0 {
		return item{}, false, o.closing
	}
	i = o.items[0]
	o.items[0] = item{}
	o.items = o.items[1:]
	o.bytes -= proto.Size(i.frame)
	return i, true, false
}

// finish ends the Exchange once everything in it is sent.
func (o *outbox) finish() {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closing = true
	o.signal()
}

// replace ends the Exchange at once.
func (o *outbox) replace() {
	if o != nil {
		close(o.replaced)
	}
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func resultFrame(e *workerv1.Envelope) *workerv1.ExchangeResponse {
	return &workerv1.ExchangeResponse{Frame: &workerv1.ExchangeResponse_Result{Result: e}}
}
