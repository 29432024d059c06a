package microsandbox

import (
	"context"
	"sync"
	"time"
)

const (
	connectionsMax = 8
	callsMax       = 60
)

// client holds connections to one sandbox. It opens another one when all are busy.
type client struct {
	name string
	path func() string
	lock sync.Mutex
	open []*connection
}

// call opens a call on a connection that has room for it.
func (c *client) call(ctx context.Context, request object, needs ...string) (*call, error) {
	for {
		made, err := c.try(ctx, request, needs...)
		if made != nil || err != nil {
			return made, err
		}
		// Every connection is full: the next call that ends makes room.
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, cancelled(ctx)
		}
	}
}

func (c *client) try(ctx context.Context, request object, needs ...string) (*call, error) {
	if ctx.Err() != nil {
		return nil, cancelled(ctx)
	}
	c.lock.Lock()
	defer c.lock.Unlock()
	if err := c.connectLocked(ctx); err != nil {
		return nil, err
	}
	for _, connection := range c.open {
		if connection.count() < callsMax {
			return connection.call(request, needs...)
		}
	}
	return nil, nil
}

func (c *client) connect(ctx context.Context) error {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.connectLocked(ctx)
}

// connectLocked opens a connection, unless one has room or there are enough.
func (c *client) connectLocked(ctx context.Context) error {
	var open []*connection
	hasRoom := false
	for _, connection := range c.open {
		if connection.isOpen() {
			open = append(open, connection)
			hasRoom = hasRoom || connection.count() < callsMax
		}
	}
	c.open = open
	if hasRoom || len(open) >= connectionsMax {
		return nil
	}
	connection, err := dial(ctx, c.path(), c.name)
	if err != nil {
		return err
	}
	c.open = append(c.open, connection)
	return nil
}

// ask opens a call that has one answer, and returns it.
func (c *client) ask(ctx context.Context, request object, needs ...string) (object, error) {
	call, err := c.call(ctx, request, needs...)
	if err != nil {
		return nil, err
	}
	defer call.abandon()
	for {
		item, err := call.receive(ctx)
		if err != nil {
			return nil, err
		}
		if item.message != nil {
			return item.message, nil
		}
	}
}

// close closes all connections. The next call opens a new one.
func (c *client) close() {
	c.lock.Lock()
	defer c.lock.Unlock()
	for _, connection := range c.open {
		connection.close()
	}
	c.open = nil
}
