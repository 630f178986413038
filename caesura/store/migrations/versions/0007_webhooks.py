"""Webhooks"""

from alembic import op
import sqlalchemy as sa

revision = '0007'
down_revision = '0006'


def _seq() -> sa.Column:
    return sa.Column('seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False)


def upgrade() -> None:
    op.create_table('webhook_endpoints',
    _seq(),
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('project', sa.String(length=64), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('url', sa.Text(), nullable=False),
    sa.Column('event_types', sa.JSON(), nullable=False),
    sa.Column('secret', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('seq'),
    sa.UniqueConstraint('id'),
    sqlite_autoincrement=True
    )
    op.create_index('webhook_endpoints_of_project', 'webhook_endpoints', ['project', 'seq'], unique=False)
    op.create_table('webhook_deliveries',
    _seq(),
    sa.Column('event_id', sa.String(length=64), nullable=False),
    sa.Column('endpoint', sa.String(length=64), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('body', sa.Text(), nullable=False),
    sa.Column('num_tries', sa.Integer(), nullable=False),
    sa.Column('due_at', sa.Float(), nullable=True),
    sa.ForeignKeyConstraint(['endpoint'], ['webhook_endpoints.id'], ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('seq'),
    sqlite_autoincrement=True
    )
    op.create_index('webhook_deliveries_due', 'webhook_deliveries', ['due_at'], unique=False)
    op.create_index('webhook_deliveries_to', 'webhook_deliveries', ['endpoint'], unique=False)
